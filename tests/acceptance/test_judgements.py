"""How the checks of the acceptance judge figures, such as those of machines that are not at hand."""

import json
import pathlib
import shutil
from typing import Any

import pytest

from trainer.acceptance import all_reduce, engines, input_rate, rates, trained
from trainer.acceptance.compiled import cudnn_calls
from trainer.acceptance.result import passed
from trainer.acceptance.work import Work
from trainer.run.checkpoint import read_checkpoint, write_checkpoint
from trainer.system.nvidia_smi import GpuLink, find_gpu_link

OLD_RUN = pathlib.Path(__file__).parents[1] / "compatibility" / "made_by_0_1_0" / "run"
GPUS = Work(directory=pathlib.Path("work"), size_name="full", device="gpu", num_replicas=8)
NVLINKS = GpuLink("NVLink", 450e9, "18 NVLinks (450 GB/s each way)")


@pytest.fixture
def work(tmp_path: pathlib.Path) -> Work:
    """A directory in which the run of one replica and that of mirrored are the same."""
    work = Work(directory=tmp_path, size_name="small")
    for name in ("single", "mirrored"):
        shutil.copytree(OLD_RUN, work.run_dir(name))
    return work


def test_the_same_run_is_equal(work: Work) -> None:
    result = engines.compare_runs(work, "mirrored")
    assert result.outcome == "passed"
    assert result.figures == {"loss_difference": 0.0, "weight_difference": 0.0}


def test_a_loss_that_is_wrong_by_a_thousandth_is_seen(work: Work) -> None:
    metrics = work.run_dir("mirrored") / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[0]["loss"] *= 1.001
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = engines.compare_runs(work, "mirrored")
    assert result.outcome == "failed"
    assert result.figures["loss_difference"] == pytest.approx(1e-3)
    assert str(work.run_dir("mirrored")) in result.reason


def test_weights_that_are_wrong_by_a_thousandth_are_seen(work: Work) -> None:
    path = trained.last_checkpoint(work.run_dir("mirrored"))
    checkpoint = read_checkpoint(path)
    model = {name: (1.001 * array).astype(array.dtype) for name, array in checkpoint.model.items()}
    write_checkpoint(checkpoint._replace(model=model), path)
    result = engines.compare_runs(work, "mirrored")
    assert result.outcome == "failed"
    assert result.figures["loss_difference"] == 0
    assert result.figures["weight_difference"] == pytest.approx(1e-3, rel=1e-3)


def test_a_step_too_few_and_a_loss_that_is_no_number_are_seen() -> None:
    assert trained.difference_of_losses([1.0], [1.0, 1.0]) == float("inf")
    assert trained.difference_of_losses([], []) == float("inf")
    assert trained.difference_of_losses([1.0, float("nan")], [1.0, 1.0]) == float("inf")


RIGHT = [("Conv2D", "bf16"), ("Conv2DBackpropFilter", "bf16"), ("Conv2DBackpropInput", "bf16")]


@pytest.mark.parametrize(
    ("name", "found", "reason"),
    [
        ("mixed_bfloat16 XLA on", [], "no convolution was compiled"),
        ("mixed_bfloat16 XLA on", [("Conv2D", "f32"), *RIGHT[1:]], "1 of 3 convolutions are in f32, not bf16"),
        ("float32 XLA on", RIGHT, "3 of 3 convolutions are in bf16, not f32"),
        ("mixed_bfloat16 XLA on", RIGHT[:2], "none is a BackpropInput"),
        ("mixed_bfloat16 XLA off", RIGHT, "3 convolutions were compiled"),
    ],
)
def test_what_xla_must_not_compile_is_named(name: str, found: list[tuple[str, str]], reason: str) -> None:
    right = {"mixed_bfloat16 XLA off": [], "mixed_bfloat16 XLA on": RIGHT}
    assert rates.judge_compilation(right, {}).outcome == "passed"
    result = rates.judge_compilation({**right, name: found}, {})
    assert result.outcome == "failed"
    assert result.reason == f"{name}: {reason}"


def test_calls_of_cudnn_are_counted_by_their_precision(tmp_path: pathlib.Path) -> None:
    (tmp_path / "module_0007.a_call.sm_9.0_gpu_after_optimizations.txt").write_text(
        "  %cudnn-conv.1 = (bf16[8,16,16,32]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), window={size=3x3}, "
        'custom_call_target="__cudnn$convForward", metadata={op_type="Conv2D"}\n'
        "  %cudnn-conv-bw-filter.1 = (f32[3,3,3,32]{3,2,1,0}, u8[64]{0}) custom-call(%a, %c), "
        'custom_call_target="__cudnn$convBackwardFilter"\n'
        '  %gemm.1 = (bf16[8,10]{1,0}, s8[64]{0}) custom-call(%d, %e), custom_call_target="__cublas$gemm"\n'
    )
    assert cudnn_calls(tmp_path) == {"convBackwardFilter f32": 1, "convForward bf16": 1}


FOUR = [rates.name_of(p, is_xla=xla) for p in ("float32", "mixed_bfloat16") for xla in (False, True)]


def test_on_a_gpu_xla_and_bfloat16_must_be_quicker_than_without_and_no_loss_may_be_infinite() -> None:
    def judge(images_per_sec: list[float], loss: float = 1.0, *, is_gpu: bool = True) -> Any:
        losses = dict.fromkeys(FOUR, 1.0) | {FOUR[1]: loss}
        return rates.judge_rates(dict(zip(FOUR, images_per_sec, strict=True)), losses, is_gpu=is_gpu)

    quick = judge([1000, 1200, 1900, 2500])
    assert (quick.outcome, quick.figures["fastest"], quick.figures["gain"]) == ("passed", FOUR[3], 2.5)
    slow = judge([1000, 1200, 1900, 800])
    assert (slow.outcome, slow.reason) == (
        "failed",
        "XLA and the lower precision together give 0.80 times the images/s without them",
    )
    assert judge([1000, 1200, 1900, 800], is_gpu=False).outcome == "passed"
    assert FOUR[1] in judge([1000, 1200, 1900, 2500], loss=float("inf")).reason


def test_the_bandwidth_is_judged_against_the_link() -> None:
    # 1 GiB over 8 GPUs: 1.75 times as many bytes pass the link of each.
    good = all_reduce.judge(GPUS, "mirrored", 1.75 * 2**30 / 360e9, is_right=True, link=NVLINKS)
    assert good.outcome == "passed"
    assert "360.00 GB/s, 80% of 18 NVLinks" in good.seen
    slow = all_reduce.judge(GPUS, "mirrored", 1.75 * 2**30 / 20e9, is_right=True, link=NVLINKS)
    assert slow.outcome == "failed"
    assert "NCCL_DEBUG=INFO" in slow.reason
    assert all_reduce.judge(GPUS, "horovod", 1.0, is_right=True, link=None).outcome == "passed"
    wrong = all_reduce.judge(GPUS, "horovod", 1e-3, is_right=False, link=None)
    assert (wrong.outcome, wrong.reason) == ("failed", "the sum is wrong")


def test_the_input_must_keep_up_with_the_steps_of_all_gpus() -> None:
    measured = passed("images-per-sec", "", "", images_per_sec={FOUR[0]: 900.0, FOUR[3]: 2000.0}, fastest=FOUR[3])
    assert input_rate.judge_input(16_500.0, "decode", GPUS, measured).outcome == "passed"
    result = input_rate.judge_input(15_500.0, "decode", GPUS, measured)
    assert result.outcome == "failed"
    assert "the steps of 8 replicas take 16,000" in result.seen
    # The same cores decode and train, and other work may take them in between.
    cpu = Work(directory=pathlib.Path("work"), size_name="full", device="cpu")
    assert input_rate.judge_input(100.0, "decode", cpu, measured).outcome == "passed"


STATUS = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n\t Link 0: 26.562 GB/s\n\t Link 1: 26.562 GB/s\nGPU 1: NVIDIA H100\n" + (
    "\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\n"
)
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\x1b[0m\nGPU0\t X \t{0}\tPIX\t0-31\nGPU1\t{0}\t X \tSYS\t0-31\n"
    "NIC0\tPIX\tSYS\t X \n"
)


@pytest.mark.parametrize(
    ("status", "topology", "pcie", "expected"),
    [
        (STATUS, TOPOLOGY.format("NV2"), "4, 16\n4, 16\n", ("NVLink", 26.562e9)),
        # The NVLinks lead elsewhere, as between pairs of cards with a bridge.
        (STATUS, TOPOLOGY.format("SYS"), "4, 16\n3, 16\n", ("PCIe", 15.76e9)),
        ("", TOPOLOGY.format("PHB"), "5, 16\n5, 8\n", ("PCIe", 31.504e9)),
        ("", "", "[N/A], [N/A]\n", None),
    ],
)
def test_the_link_is_that_which_data_between_gpus_has_to_pass(
    status: str,
    topology: str,
    pcie: str,
    expected: tuple[str, float] | None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in (("nvlink", status), ("topo", topology), ("pcie", pcie)):
        (tmp_path / name).write_text(text)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncase $1 in nvlink|topo) cat {tmp_path}/$1 ;; *) cat {tmp_path}/pcie ;; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    link = find_gpu_link()
    assert (link and (link.kind, link.bytes_per_sec)) == (expected and (expected[0], pytest.approx(expected[1])))
