"""Answer Classify, Regress and MultiInference: run signatures on tf.Examples.

Follows tensorflow_serving/servables/tensorflow/classifier.cc, regressor.cc and multi_inference.cc.
"""

from collections.abc import Mapping
from typing import Any

from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from serving.inference.examples import Method, check_signature, classifications, example_inputs, regressions
from serving.inference.inference import Inference, num_bytes_of
from serving.models.servable import DEFAULT_SIGNATURE, Servable
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array, SignatureSpec
from serving.rpc.calls import Call
from serving.rpc.model_spec import fill_model_spec, read_target, target_of

_METHODS: Mapping[str, Method] = {
    "tensorflow/serving/classify": "classify",
    "tensorflow/serving/regress": "regress",
}


class Examples:
    """Answers requests with tf.Examples. Every method raises RequestError."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def classify(self, request: Any, call: Call) -> Any:
        """Return the ClassificationResponse."""
        response = classification_pb2.ClassificationResponse()
        await self._answer(request, "classify", call, response)
        return response

    async def regress(self, request: Any, call: Call) -> Any:
        """Return the RegressionResponse."""
        response = regression_pb2.RegressionResponse()
        await self._answer(request, "regress", call, response)
        return response

    async def multi_inference(self, request: Any, call: Call) -> Any:
        """Return the MultiInferenceResponse: the answers of several signatures of one version to the same examples."""
        first = request.tasks[0].model_spec if request.tasks else inference_pb2.InferenceTask().model_spec
        with self._inference.models.use(target_of(first, call)) as servable:
            tasks = _read_tasks(request, servable)
            inputs = await self._read_input(request)
            response = inference_pb2.MultiInferenceResponse()
            for signature, method in tasks:
                result = response.results.add()
                fill_model_spec(result.model_spec, servable, signature.name)
                filled = result.classification_result if method == "classify" else result.regression_result
                await self._run(servable, signature, method, inputs, call, filled)
            return response

    async def _answer(self, request: Any, method: Method, call: Call, response: Any) -> None:
        with self._inference.models.use(read_target(request, call)) as servable:
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            signature = _find_signature(servable, name, "No signature was found with the name: ")
            check_signature(signature, method)
            inputs = await self._read_input(request)
            await self._run(servable, signature, method, inputs, call, response.result)
            fill_model_spec(response.model_spec, servable, signature.name)

    async def _read_input(self, request: Any) -> dict[str, Array]:
        return await self._inference.convert(lambda: _read_input(request.input), num_bytes=request.ByteSize())

    async def _run(
        self,
        servable: Servable,
        signature: SignatureSpec,
        method: Method,
        inputs: Mapping[str, Array],
        call: Call,
        result: Any,
    ) -> None:
        """Fill the ClassificationResult or RegressionResult with the answer of one signature."""
        outputs = await self._inference.run(
            servable, signature.name, inputs, method=method, deadline_secs=call.deadline_secs
        )
        fill = _fill_classifications if method == "classify" else _fill_regressions
        (examples,) = inputs.values()
        await self._inference.convert(lambda: fill(result, outputs, len(examples)), num_bytes=num_bytes_of(outputs))


def _read_tasks(request: Any, servable: Servable) -> list[tuple[SignatureSpec, Method]]:
    tasks: dict[str, tuple[SignatureSpec, Method]] = {}
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != servable.model_name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in tasks:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        signature = _find_signature(servable, name, "Requested signature not found in model graph: ")
        if task.method_name not in _METHODS:
            raise RequestError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        check_signature(signature, _METHODS[task.method_name])
        tasks[name] = signature, _METHODS[task.method_name]
    return list(tasks.values())


def _find_signature(servable: Servable, name: str, told: str) -> SignatureSpec:
    if name not in servable.signatures:
        raise invalid(f"{told}{name}")
    return servable.signatures[name]


def _read_input(message: Any) -> dict[str, Array]:
    """Return the examples of an Input, as InputToSerializedExampleTensor of util.cc does."""
    kind = message.WhichOneof("kind")
    examples = () if kind is None else getattr(message, kind).examples
    if not examples:
        raise invalid("Input is empty.")
    shared = kind == "example_list_with_context"
    context = message.example_list_with_context.context.SerializeToString() if shared else b""
    return example_inputs([example.SerializeToString() for example in examples], context)


def _fill_regressions(result: Any, outputs: Mapping[str, Array], num_examples: int) -> None:
    for value in regressions(outputs, num_examples).tolist():
        result.regressions.add(value=value)


def _fill_classifications(result: Any, outputs: Mapping[str, Array], num_examples: int) -> None:
    labels, scores = classifications(outputs, num_examples)
    for names, row in zip(labels.tolist(), scores.tolist(), strict=True):
        classes = result.classifications.add().classes
        for name, score in zip(names, row, strict=True):
            classes.add(label=_text(name), score=score)


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError as e:
        raise RequestError(Code.INTERNAL, f"a label of the answer is not UTF-8 ({e.reason}): {label!r}") from None
