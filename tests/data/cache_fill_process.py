"""Opens the cache of a dataset's training split in a process of its own; can be told to stop in the middle.

    cache_fill_process.py DATASET CACHE_DIR SIZE_PX [NUM_IMAGES]

With NUM_IMAGES it says "waiting" once so many images are written, and goes on no further.
"""

import hashlib
import pathlib
import sys
import time


def main() -> None:
    dataset, cache_dir, size_px, *stop = sys.argv[1:]
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)
    from trainer.data.decode.geometry import Geometry
    from trainer.data.input import pixel_cache

    class Waits:
        num_done = 0

        def advance(self, amount: int = 1) -> None:
            self.num_done += amount
            if stop and self.num_done >= int(stop[0]):
                print("waiting", flush=True)
                time.sleep(600)

    import contextlib

    pixels = pixel_cache.open_pixels(
        pathlib.Path(dataset),
        "train",
        Geometry(image_size_px=int(size_px), resize="crop"),
        location="disk",
        cache_dir=pathlib.Path(cache_dir),
        progress=lambda description, total: contextlib.nullcontext(Waits()),
    )
    assert pixels is not None
    print("filled", hashlib.sha256(pixels.tobytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    main()
