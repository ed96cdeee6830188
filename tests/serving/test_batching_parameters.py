"""TensorFlow Serving's batching parameters: its files are read as they are, and what it refuses is refused."""

import importlib.resources
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching.parameters import BatchingParameters, parse_parameters, read_parameters
from serving.protocol.limits import cluster_batch_size
from trainer.errors import UsageError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_the_file_of_the_cluster_is_read() -> None:
    file = importlib.resources.files("k8s") / "serving" / "batching.config"
    assert read_parameters(pathlib.Path(str(file))) == BatchingParameters(
        max_batch_size=cluster_batch_size(), batch_timeout_micros=2000, num_batch_threads=2, max_enqueued_batches=64
    )


def test_every_field_is_read() -> None:
    # The first four lines are tensorflow_serving/servables/tensorflow/testdata/batching_config.txt.
    text = """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 0 }
        max_enqueued_batches { value: 1000000 }
        num_batch_threads { value: 8 }
        thread_pool_name: { value: 'pool' }  # a comment
        allowed_batch_sizes: 64  allowed_batch_sizes: 128
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 32 }
    """
    assert parse_parameters(text, origin="f") == BatchingParameters(
        max_batch_size=128,
        batch_timeout_micros=0,
        max_enqueued_batches=1_000_000,
        num_batch_threads=8,
        thread_pool_name="pool",
        allowed_batch_sizes=(64, 128),
        pad_variable_length_inputs=True,
        enable_large_batch_splitting=True,
        max_execution_batch_size=32,
    )


def test_what_a_file_lacks_has_the_default_of_tensorflow_serving() -> None:
    parameters = parse_parameters("", origin="f")
    assert parameters == BatchingParameters()
    assert (parameters.max_batch_size, parameters.batch_timeout_micros, parameters.max_enqueued_batches) == (
        1000,
        0,
        10,
    )
    assert parameters.num_batch_threads == len(os.sched_getaffinity(0))
    assert parameters.execution_batch_size == 1000


def test_a_batch_is_smaller_than_a_request_only_where_requests_are_split() -> None:
    assert BatchingParameters(max_batch_size=8, max_execution_batch_size=2).execution_batch_size == 8
    split = BatchingParameters(max_batch_size=8, max_execution_batch_size=2, enable_large_batch_splitting=True)
    assert split.execution_batch_size == 2
    assert BatchingParameters(max_batch_size=8, enable_large_batch_splitting=True).execution_batch_size == 8


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_batch_sise { value: 1 }", 'has no field named "max_batch_sise"'),
        ("max_batch_size: 16", "Expected"),
        ("max_batch_size { value: many }", "many"),
        ("max_batch_size { value: 1 } max_batch_size { value: 2 }", "max_batch_size"),
        ("max_batch_size { value: 0 }", r"max_batch_size is 0, expected 1 to \d+; set max_batch_size { value: 1 }"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros is -1, expected 0 to"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches is 0, expected 1 to"),
        ("num_batch_threads { value: 100000 }", "expected 1 to 1024; set num_batch_threads { value: 1024 }"),
        ("max_execution_batch_size { value: -2 }", "max_execution_batch_size is -2"),
        ("allowed_batch_sizes: 4 allowed_batch_sizes: 2", r"are \[4, 2\], expected positive and ascending ones"),
        ("allowed_batch_sizes: 0 allowed_batch_sizes: 1000", "expected positive and ascending ones"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 4",
            "is 4, expected max_batch_size, which is 8; set max_batch_size { value: 4 }, or add allowed_batch_sizes: 8",
        ),
        ("allowed_batch_sizes: 4", "is 4, expected max_batch_size, which is 1000"),
        (
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 1001 }",
            "max_execution_batch_size is 1001, expected at most max_batch_size, which is 1000",
        ),
    ],
)
def test_what_tensorflow_serving_does_not_take_is_an_error_with_the_file(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        parse_parameters(text, origin="FILE")
    assert "FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"absent .No such file or directory.; name an existing file"):
        read_parameters(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is no UTF-8 text"):
        read_parameters(tmp_path / "binary")


@given(
    sizes=st.sets(st.integers(1, 2**31 - 1), max_size=5),
    timeout=st.integers(0, 2**31 - 1),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_what_is_written_is_read_again(sizes: set[int], timeout: int, flags: tuple[bool, bool]) -> None:
    parameters = BatchingParameters(
        max_batch_size=max(sizes, default=7),
        batch_timeout_micros=timeout,
        allowed_batch_sizes=tuple(sorted(sizes)),
        pad_variable_length_inputs=flags[0],
        enable_large_batch_splitting=flags[1],
        thread_pool_name='a "name"',
    )
    assert parse_parameters(parameters.as_text(), origin="f") == parameters


def test_the_generated_code_is_that_of_the_protos(tmp_path: pathlib.Path) -> None:
    protos = sorted(path.relative_to(REPOSITORY) for path in REPOSITORY.glob("serving/protocol/protos/*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", *map(str, protos)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=600)
    assert protos
    for proto in protos:
        generated = proto.with_name(f"{proto.stem}_pb2.py")
        assert (tmp_path / generated).read_text() == (REPOSITORY / generated).read_text(), f"make {generated} again"
