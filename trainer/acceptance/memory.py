"""Lack of memory is met and survived: the step is made again in more parts, with the losses of a run that had enough.

`check_memory` runs this module in two processes, ... memory NAME DIRECTORY LIMIT: without a limit, to learn how much a
training takes, and with less than that.
"""

import json
import os
import pathlib
import re
import sys
from typing import Any, Final

from trainer.acceptance import trained
from trainer.acceptance.result import Result, failed, passed
from trainer.acceptance.work import CommandError, Work, log_file, run_command
from trainer.system import atomic
from trainer.system.child_python import python_command

MEMORY: Final = "memory"
MAX_LOSS_DIFFERENCE: Final = 1e-4
EXPECTED: Final = (
    f"with too little memory for a batch, steps are made again in parts, with the same losses ({MAX_LOSS_DIFFERENCE:g})"
)
ENOUGH, LITTLE = "memory-enough", "memory-little"
# Of the memory that a batch in one part takes. Half a batch needs more than half of it: weights and input stay.
_SHARES = (0.7, 0.55, 0.4)
# oneDNN's allocator, which is TensorFlow's on x86 CPUs; XLA's memory comes from it as well.
_CPU_LIMIT = "TF_MKL_ALLOC_MAX_BYTES"
_AGAIN = re.compile(r"making it again in (\d+)")
_EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}


def check_memory(work: Work) -> list[Result]:
    """Train with enough memory and with less, until that was too little for a batch, and compare the losses."""
    peak_bytes = _train_in_process(work, ENOUGH, None)
    for share in _SHARES:
        limit_bytes = int(share * peak_bytes)
        name = f"{LITTLE}-{share:.0%}"
        try:
            _train_in_process(work, name, limit_bytes)
        except CommandError as e:
            seen = f"{peak_bytes / 2**20:.0f} MiB taken; with {limit_bytes / 2**20:.0f} MiB the training ends"
            return [failed(MEMORY, EXPECTED, seen, str(e), peak_bytes=peak_bytes, limit_bytes=limit_bytes)]
        if parts := _AGAIN.findall(log_file(work, name).read_text(encoding="utf-8")):
            return [judge(work, name, peak_bytes, limit_bytes, int(parts[-1]))]
    seen = f"{peak_bytes / 2**20:.0f} MiB taken, and {limit_bytes / 2**20:.0f} MiB are enough"
    return [failed(MEMORY, EXPECTED, seen, "the limit has no effect here", peak_bytes=peak_bytes)]


def judge(work: Work, name: str, peak_bytes: int, limit_bytes: int, num_parts: int) -> Result:
    """Compare the run `name`, whose batches were computed in `num_parts`, with the one that had enough memory."""
    expected = trained.read_losses(work.run_dir(ENOUGH))
    found = trained.difference_of_losses(trained.read_losses(work.run_dir(name)), expected)
    seen = (
        f"{limit_bytes / 2**20:.0f} of {peak_bytes / 2**20:.0f} MiB: steps made again in {num_parts} parts, "
        f"{len(expected)} losses within {found:.1e}"
    )
    figures = {"peak_bytes": peak_bytes, "limit_bytes": limit_bytes, "num_parts": num_parts}
    if found > MAX_LOSS_DIFFERENCE:
        reason = f"compare {work.run_dir(name)} with {work.run_dir(ENOUGH)}"
        return failed(MEMORY, EXPECTED, seen, reason, **figures)
    return passed(MEMORY, EXPECTED, seen, **figures, loss_difference=found)


def _train_in_process(work: Work, name: str, limit_bytes: int | None) -> int:
    """Train the small network on large images, with all memory or with `limit_bytes`; return the most bytes taken."""
    variables = {_CPU_LIMIT: str(limit_bytes)} if limit_bytes and work.device == "cpu" else {}
    limit = "all" if limit_bytes is None else str(limit_bytes)
    command = python_command("trainer.acceptance.memory", name, str(work.directory), limit)
    run_command(work, command, name, {**_EXACT, **variables})
    return int(json.loads(_answer_file(work, name).read_text(encoding="utf-8"))["peak_bytes"])


def _answer_file(work: Work, name: str) -> pathlib.Path:
    return work.results_dir / f"{name}.peak"


def _limit_gpu(limit_bytes: int) -> None:
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")[0]
    limit = tf.config.LogicalDeviceConfiguration(memory_limit=limit_bytes / 2**20)
    tf.config.set_logical_device_configuration(gpu, [limit])


def main(name: str, directory: str, limit: str) -> None:
    """Train in this process and write the most memory that it took."""
    work = Work.load(pathlib.Path(directory))
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=work.device == "gpu")
    if work.device == "gpu" and limit != "all":
        _limit_gpu(int(limit))

    import tensorflow as tf

    import trainer

    trainer.train(work.dataset, run_dir=work.run_dir(name), settings=_settings(work), note=_say)
    device = "GPU:0" if work.device == "gpu" else "CPU:0"
    peak_bytes = tf.config.experimental.get_memory_info(device)["peak"]
    atomic.write_json(_answer_file(work, name), {"peak_bytes": peak_bytes})


def _settings(work: Work) -> dict[str, Any]:
    from trainer.data.dataset.manifest import Manifest

    size = work.size
    num_train = Manifest.load(work.dataset).splits["train"].num_examples
    return {
        **work.small_network_settings,
        **work.device_settings,
        "model.image_size_px": size.memory_image_size_px,
        "distribute.strategy": "single",
        "distribute.precision": "float32",
        # An operation of XLA's takes its memory at once; oneDNN's own operations do not survive the lack of it.
        "distribute.xla": "on",
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.01,
        "train.accumulate_steps": "auto",
        "train.global_batch_size": size.memory_batch,
        "train.epochs": size.memory_steps * size.memory_batch / num_train,
        "data.cache": "off",
        "data.ram_budget_gib": 0.25,
        "log.every_steps": 1,
    }


def _say(line: str) -> None:
    sys.stderr.write(line + os.linesep)
    sys.stderr.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
