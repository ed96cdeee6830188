"""Measure every backbone of the registry and write model/backbones/backbones.json for `trainer backbones`.

    python scripts/measure_backbones.py

Networks are built without weights, which takes some minutes in all. Run it after changing the registry.
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import keras

from trainer.model.backbones import efficientnet_lite
from trainer.model.backbones.blocks import blocks_of
from trainer.model.backbones.catalogue import FILE, BackboneFacts, Catalogue
from trainer.model.backbones.flops import count_multiply_adds
from trainer.model.backbones.registry import find_backbone, list_backbones
from trainer.system import atomic
from trainer.system.private_api.keras_scopes import get_file_replaced


def main() -> None:
    measured = []
    for name in list_backbones():
        facts = measure(name)
        print(f"{name:24} {facts.num_parameters:>12,} {facts.multiply_adds / 1e9:8.2f} G", flush=True)
        measured.append(facts)
    atomic.write_text(FILE, Catalogue(backbones=measured).model_dump_json(indent=1, exclude_none=True) + "\n")


def measure(name: str) -> BackboneFacts:
    spec = find_backbone(name)
    with keras.StatelessScope():  # shapes only, no weights
        network = spec.build((spec.image_size_px, spec.image_size_px, 3))
    variant = efficientnet_lite.VARIANTS.get(name)
    return BackboneFacts(
        name=name,
        image_size_px=spec.image_size_px,
        num_parameters=network.count_params(),
        multiply_adds=count_multiply_adds(network),
        num_blocks=len(blocks_of(network)),
        weights_file=None if variant else weights_file_of(spec),
        weights_package=variant.weights_package if variant else None,
    )


class _FileAskedFor(Exception):
    pass


def weights_file_of(spec: Any) -> str:
    """Return the file name of Keras's ImageNet weights, by intercepting the download."""

    def stop(fname: str, *args: Any, **kwargs: Any) -> None:
        raise _FileAskedFor(fname)

    try:
        with get_file_replaced(stop), keras.StatelessScope():
            spec.build_imagenet((spec.image_size_px, spec.image_size_px, 3))
    except _FileAskedFor as asked:
        return str(asked)
    raise RuntimeError(f"Keras asked for no file of weights for {spec.name}")


if __name__ == "__main__":
    main()
