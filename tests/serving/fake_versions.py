"""Version directories whose graph file says what they answer, and a runtime for them: TensorFlow is not needed."""

import pathlib
import time
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.models.servable import Serving
from serving.protocol.status import Code, RequestError
from serving.protocol.tensors import Array, SignatureSpec, TensorSpec

_SPEC = TensorSpec(dtype="DT_FLOAT", shape=(-1,))
SIGNATURE = SignatureSpec(
    name="serving_default", method_name="tensorflow/serving/predict", inputs={"x": _SPEC}, outputs={"y": _SPEC}
)


class FakeRuntime:
    """Answers x plus the number in its file."""

    platform = "fake"
    signature_defs: Mapping[str, Any] = {}
    signatures: Mapping[str, SignatureSpec] = {SIGNATURE.name: SIGNATURE}

    def __init__(self, number: int) -> None:
        self.number = number

    def run(self, signature: SignatureSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(0.001)  # so that a swap finds requests in flight
        return {"y": inputs["x"] + np.float32(self.number)}


class FakeModels:
    """Loads version directories, and keeps a weak reference to each runtime by number."""

    def __init__(self) -> None:
        self.runtimes: dict[int, list[weakref.ref[FakeRuntime]]] = {}
        self.num_loads = 0

    @property
    def serving(self) -> Serving:
        return Serving(load=self._load)

    def _load(self, path: pathlib.Path) -> FakeRuntime:
        self.num_loads += 1
        text = (path / "saved_model.pb").read_text()
        if text == "bad":
            raise RequestError(Code.DATA_LOSS, f"{path} is damaged")
        runtime = FakeRuntime(int(text))
        self.runtimes.setdefault(runtime.number, []).append(weakref.ref(runtime))
        return runtime

    def in_memory(self) -> list[int]:
        return sorted(number for number, refs in self.runtimes.items() for ref in refs if ref() is not None)


def write_version(base_path: pathlib.Path, version: int, content: int | str | None = None) -> pathlib.Path:
    """Write a version that answers x plus `content`, by default its number."""
    directory = base_path / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "saved_model.pb").write_text(str(version if content is None else content))
    return directory
