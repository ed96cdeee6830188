"""Answer Predict: run any signature on tensors.

Checks and messages follow tensorflow_serving/servables/tensorflow/predict_util.cc.
"""

from collections.abc import Mapping
from typing import Any

from tensorflow_serving.apis import predict_pb2

from serving.inference.inference import Inference, num_bytes_of
from serving.models.servable import DEFAULT_SIGNATURE, Servable
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensor_proto import RepeatBudget, decode_tensor, dtype_name, encode_tensor
from serving.protocol.tensors import Array, SignatureSpec
from serving.rpc.calls import Call
from serving.rpc.model_spec import fill_model_spec, read_target


class Predict:
    """Answers PredictRequests; repeated values in tensors may take `max_repeated_bytes`."""

    def __init__(self, inference: Inference, *, max_repeated_bytes: int) -> None:
        self._inference = inference
        self._max_repeated_bytes = max_repeated_bytes

    async def __call__(self, request: Any, call: Call) -> Any:
        """Return the PredictResponse. Raises RequestError."""
        with self._inference.models.use(read_target(request, call)) as servable:
            signature = _find_signature(servable, request.model_spec.signature_name)
            names = _output_names(request, signature)
            inputs = await self._inference.convert(
                lambda: self._decode(request, signature), num_bytes=request.ByteSize()
            )
            outputs = await self._inference.run(
                servable, signature.name, inputs, method=call.method, deadline_secs=call.deadline_secs
            )
            wanted = {name: outputs[name] for name in names}
            response = predict_pb2.PredictResponse()
            fill_model_spec(response.model_spec, servable, signature.name)
            await self._inference.convert(lambda: _encode(wanted, response), num_bytes=num_bytes_of(wanted))
            return response

    def _decode(self, request: Any, signature: SignatureSpec) -> dict[str, Array]:
        _check_input_names(set(request.inputs), set(signature.inputs))
        budget = RepeatBudget(self._max_repeated_bytes)
        inputs = {}
        for index, (name, spec) in enumerate(sorted(signature.inputs.items())):
            proto = request.inputs[name]
            dtype = dtype_name(proto)
            if dtype != spec.dtype:
                raise invalid(
                    f"Expects arg[{index}] to be {_short(spec.dtype)} but {_short(dtype)} is provided ({name})"
                )
            try:
                inputs[name] = decode_tensor(proto, budget)
            except ValueError as e:
                raise invalid(f"tensor parsing error: {name}: {e}") from None
        return inputs


def _find_signature(servable: Servable, name: str) -> SignatureSpec:
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise RequestError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return servable.signatures[name]


def _output_names(request: Any, signature: SignatureSpec) -> list[str]:
    names = list(request.output_filter)
    for name in names:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{_braces(set(signature.outputs))}."
            )
        if names.count(name) > 1:
            raise invalid(f"duplicate output tensor alias: {name}")
    return names or list(signature.outputs)


def _check_input_names(sent: set[str], wanted: set[str]) -> None:
    if sent != wanted:
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({_braces(sent)}) != "
            f"len({_braces(wanted)}). Sent extra: {_braces(sent - wanted)}. Missing but required: "
            f"{_braces(wanted - sent)}."
        )


def _encode(outputs: Mapping[str, Array], response: Any) -> None:
    for name, array in outputs.items():
        try:
            encode_tensor(array, response.outputs[name])
        except ValueError as e:
            raise RequestError(Code.UNIMPLEMENTED, f"output {name!r}: {e}") from None


def _braces(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _short(dtype: str) -> str:
    return dtype.removeprefix("DT_").lower()
