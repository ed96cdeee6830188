"""TensorFlow Serving's batching parameters, and the text file that holds them."""

import dataclasses
import itertools
import os
import pathlib

from trainer.errors import UsageError
from trainer.system.safe_read import read_small

_MAX = 2**31 - 1
# The least that TensorFlow Serving takes (batching_util/shared_batch_scheduler.h), and the most that makes sense.
_RANGES = {
    "max_batch_size": (1, _MAX),
    "batch_timeout_micros": (0, _MAX),
    "max_enqueued_batches": (1, _MAX),
    "num_batch_threads": (1, 1024),
    "max_execution_batch_size": (1, _MAX),
}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchingParameters:
    """Sizes and times of batches, with TensorFlow Serving's names and defaults.

    Attributes:
        max_batch_size: the most examples in a request, and in a batch.
        batch_timeout_micros: how long the oldest request of a batch waits for others.
        max_enqueued_batches: how many batches of a signature wait before requests are refused.
        num_batch_threads: how many batches of a model run at the same time.
        thread_pool_name: a name for metrics.
        allowed_batch_sizes: batches are padded to one of these; empty: any size. The last is `max_batch_size`.
        pad_variable_length_inputs: requests whose shapes differ are padded to one another and joined.
        enable_large_batch_splitting: a request may have parts in several batches.
        max_execution_batch_size: with it, the most examples in a batch; None: `max_batch_size`.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = dataclasses.field(default_factory=_num_cores)
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None

    @property
    def execution_batch_size(self) -> int:
        """The most examples in a batch."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size is not None:
            return self.max_execution_batch_size
        return self.max_batch_size

    def check(self, origin: str = "batching parameters") -> None:
        """Refuse what TensorFlow Serving refuses. Raises UsageError, which names `origin`."""
        problem = self._problem()
        if problem is not None:
            raise UsageError(f"{origin}: {problem}")

    def _problem(self) -> str | None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                nearest = least if value < least else most
                return f"{name} is {value}, expected {least} to {most}; set {name} {{ value: {nearest} }}"
        sizes = self.allowed_batch_sizes
        if sizes and (sizes[0] < 1 or any(b <= a for a, b in itertools.pairwise(sizes))):
            fix = " ".join(f"allowed_batch_sizes: {size}" for size in sorted({max(size, 1) for size in sizes}))
            return f"allowed_batch_sizes are {list(sizes)}, expected positive and ascending ones; write {fix}"
        if sizes and sizes[-1] != self.max_batch_size:
            return (
                f"the last of allowed_batch_sizes is {sizes[-1]}, expected max_batch_size, which is "
                f"{self.max_batch_size}; set max_batch_size {{ value: {sizes[-1]} }}, or add "
                f"allowed_batch_sizes: {self.max_batch_size}"
            )
        if self.execution_batch_size > self.max_batch_size:
            return (
                f"max_execution_batch_size is {self.execution_batch_size}, expected at most max_batch_size, which is "
                f"{self.max_batch_size}; set max_batch_size {{ value: {self.execution_batch_size} }} or more"
            )
        return None

    def as_text(self) -> str:
        """Return the text that TensorFlow Serving reads with --batching_parameters_file."""
        from google.protobuf import text_format

        from serving.protocol.protos import batching_parameters_pb2

        proto = batching_parameters_pb2.BatchingParameters(allowed_batch_sizes=self.allowed_batch_sizes)
        proto.pad_variable_length_inputs = self.pad_variable_length_inputs
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is not None:
                getattr(proto, name).value = value
        return str(text_format.MessageToString(proto))


# The fields that TensorFlow Serving gives a default if they are absent.
_OPTIONAL = (*_RANGES, "thread_pool_name", "enable_large_batch_splitting")


def read_parameters(path: pathlib.Path) -> BatchingParameters:
    """Read and check a file for TensorFlow Serving's --batching_parameters_file. Raises UsageError."""
    try:
        text = read_small(path).decode()
    except OSError as e:
        raise UsageError(f"cannot read the batching parameters in {path} ({e.strerror}); name an existing file") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is no UTF-8 text ({e}), expected batching parameters; name another file") from e
    return parse_parameters(text, origin=str(path))


def parse_parameters(text: str, *, origin: str) -> BatchingParameters:
    """Parse and check parameters. Raises UsageError, which names `origin`."""
    from google.protobuf import text_format

    from serving.protocol.protos import batching_parameters_pb2

    try:
        proto = text_format.Parse(text, batching_parameters_pb2.BatchingParameters())
    except text_format.ParseError as e:
        raise UsageError(
            f"{origin} holds no batching parameters of TensorFlow Serving ({e}); "
            "expected lines such as max_batch_size { value: 16 }"
        ) from None
    given = {name: getattr(proto, name).value for name in _OPTIONAL if proto.HasField(name)}
    parameters = BatchingParameters(
        allowed_batch_sizes=tuple(proto.allowed_batch_sizes),
        pad_variable_length_inputs=proto.pad_variable_length_inputs,
        **given,
    )
    parameters.check(origin)
    return parameters
