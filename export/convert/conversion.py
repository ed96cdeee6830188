"""Convert one inference model to TFLite and ONNX files, once or many times with different settings."""

import functools
import pathlib
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from export.convert.inference_model import InferenceModel, frozen_saved_model
from export.convert.onnx_precision import to_dynamic, to_float16, to_int8
from export.convert.quantization import Quantisation
from export.convert.tflite_metadata import with_metadata
from export.convert.to_onnx import convert_to_onnx
from export.convert.to_tflite import convert_to_tflite
from export.files.formats import DEFAULT_ONNX_OPSET, ONNX, ONNX_DYNAMIC, ONNX_FLOAT16, ONNX_INT8X16, Format
from export.files.signature import Signature
from export.runtime.samples import ImageSource, Pixels, read_batch, spread_indices


class Conversion:
    """Converts one inference model to any TFLite or ONNX format.

    Use it as a context manager: intermediate models that several formats share are made once, on first use.
    """

    def __init__(
        self,
        inference: InferenceModel,
        signature: Signature,
        training: ImageSource,
        *,
        version: int = 1,
        onnx_opset: int = DEFAULT_ONNX_OPSET,
    ) -> None:
        """Keep what every conversion needs.

        Integer formats are calibrated on `training`, evenly spread over the split; `version` goes into the metadata of
        TFLite files.
        """
        self._inference = inference
        self._signature = signature
        self._training = training
        self._version = version
        self._onnx_opset = onnx_opset
        self._stack = ExitStack()

    @property
    def num_training_images(self) -> int:
        return self._training.num_images

    def convert(self, wanted: Format, quantisation: Quantisation = Quantisation()) -> bytes:
        """Return the content of one file.

        Raises:
            ExportError: the format cannot represent the model.
        """
        calibration = self._calibration(quantisation.num_images if wanted.calibrated else 0)
        share = quantisation.share_in_float
        if wanted.kind == "tflite":
            content = convert_to_tflite(self._frozen, wanted, calibration, share)
            return with_metadata(content, self._signature, self._version)
        if wanted == ONNX:
            return self._onnx
        if wanted == ONNX_FLOAT16:
            return to_float16(self._onnx)
        if wanted == ONNX_DYNAMIC:
            return to_dynamic(self._onnx)
        bits = 16 if wanted == ONNX_INT8X16 else 8
        return to_int8(self._onnx, calibration, activation_bits=bits, share_in_float=share)

    @functools.cached_property
    def _frozen(self) -> pathlib.Path:
        return self._stack.enter_context(frozen_saved_model(self._inference, self._signature))

    @functools.cached_property
    def _onnx(self) -> bytes:
        return convert_to_onnx(self._inference, self._onnx_opset)

    def _calibration(self, num_images: int) -> Pixels:
        indices = spread_indices(self._training.num_images, num_images)
        return read_batch(self._training, indices, self._signature.geometry).images

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
