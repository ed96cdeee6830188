"""Train with XLA and the lower precision on and off: what XLA compiled, and how many images a second that gives."""

import itertools
import math
import statistics
from typing import Any, Final

from trainer.acceptance import trained
from trainer.acceptance.compiled import compiled_convolutions, cudnn_calls, start_dump
from trainer.acceptance.result import Result, failed, passed
from trainer.acceptance.work import WORK_DIR_NAME, Work

COMPILATION, RATES = "hlo", "images-per-sec"
_DTYPES: Final = {"float32": "f32", "mixed_bfloat16": "bf16", "mixed_float16": "f16"}
EXPECTED_COMPILATION: Final = (
    "with XLA all convolutions, forward and backward, are in the HLO in the asked precision; without XLA none is"
)
EXPECTED_RATES: Final = "four trainings with finite losses; on a GPU, XLA and the lower precision together are quicker"
_BACKWARD: Final = ("BackpropFilter", "BackpropInput")
# Of the lines of the log: the first has the tracing in it, the second may have.
_NUM_FIRST_LINES: Final = 2
_FLAG_OF_XLA: Final = {False: "off", True: "on"}


def check_rates(work: Work) -> list[Result]:
    """Make four trainings on one replica in this process, and return the results of both checks."""
    dump_dir = work.directory / WORK_DIR_NAME / "hlo"
    start_dump(dump_dir)
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=work.device == "gpu")
    seen: set[Any] = set()
    rates: dict[str, float] = {}
    losses: dict[str, float] = {}
    compiled: dict[str, list[tuple[str, str]]] = {}
    for precision, is_xla in itertools.product(("float32", _lower_precision(work)), (False, True)):
        name = name_of(precision, is_xla=is_xla)
        run_dir = _train(work, name, precision, is_xla=is_xla)
        rates[name] = statistics.median(trained.read_rates(run_dir)[_NUM_FIRST_LINES:])
        losses[name] = trained.read_losses(run_dir)[-1]
        compiled[name] = compiled_convolutions(dump_dir, seen=seen)
        print(f"{name}: {rates[name]:.0f} images/s, {len(compiled[name])} convolutions compiled", flush=True)
    calls = cudnn_calls(dump_dir)
    return [judge_compilation(compiled, calls), judge_rates(rates, losses, is_gpu=work.device == "gpu")]


def name_of(precision: str, *, is_xla: bool) -> str:
    """Return the name of a training."""
    return f"{precision} XLA {_FLAG_OF_XLA[is_xla]}"


def judge_compilation(compiled: dict[str, list[tuple[str, str]]], calls: dict[str, int]) -> Result:
    """Judge the (operation, dtype) of the convolutions that each training compiled; see `compiled_convolutions`.

    `calls` are those of cuDNN after XLA's optimisations.
    """
    wrong, counts = [], {}
    for name, found in compiled.items():
        precision, _, xla = name.partition(" XLA ")
        dtype = _DTYPES[precision]
        others = sorted({other for _, other in found} - {dtype})
        missing = [part for part in _BACKWARD if not any(part in operation for operation, _ in found)]
        counts[name] = len(found)
        if xla == "off":
            wrong += [f"{name}: {len(found)} convolutions were compiled"] * bool(found)
        elif not found:
            wrong.append(f"{name}: no convolution was compiled")
        elif others:
            num_others = sum(each != dtype for _, each in found)
            wrong.append(f"{name}: {num_others} of {len(found)} convolutions are in {', '.join(others)}, not {dtype}")
        elif missing:
            wrong.append(f"{name}: none is a {' or '.join(missing)}")
    told = ", ".join(f"{counts[name]} in {_DTYPES[name.split()[0]]}" for name in compiled if name.endswith("on"))
    seen = f"convolutions with XLA: {told}; without: {sum(counts[name] for name in compiled if name.endswith('off'))}"
    figures = {"convolutions": counts, "cudnn_calls": calls}
    if wrong:
        return failed(COMPILATION, EXPECTED_COMPILATION, seen, "; ".join(wrong), **figures)
    return passed(COMPILATION, EXPECTED_COMPILATION, seen, **figures)


def judge_rates(rates: dict[str, float], losses: dict[str, float], *, is_gpu: bool) -> Result:
    """Judge images per second and last losses of each training, by its name; the first is plain, the last has all."""
    (plain, *_, best), fastest = rates.values(), max(rates, key=lambda name: rates[name])
    seen = "; ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    figures = {"images_per_sec": rates, "fastest": fastest, "gain": best / plain}
    if bad := [name for name, loss in losses.items() if not math.isfinite(loss)]:
        return failed(RATES, EXPECTED_RATES, seen, f"the loss of {', '.join(bad)} is not finite", **figures)
    if is_gpu and best < plain:
        reason = f"XLA and the lower precision together give {best / plain:.2f} times the images/s without them"
        return failed(RATES, EXPECTED_RATES, seen, reason, **figures)
    return passed(RATES, EXPECTED_RATES, seen, **figures)


def _lower_precision(work: Work) -> str:
    """Return the precision that a launch would choose for this GPU; mixed_bfloat16 on CPUs."""
    from trainer.system import tf_runtime

    if work.device == "cpu":
        return "mixed_bfloat16"
    ((major, _), *_) = tf_runtime.list_compute_capabilities(tf_runtime.list_gpus()[:1])
    return "mixed_bfloat16" if major >= 8 else "mixed_float16"


def _train(work: Work, name: str, precision: str, *, is_xla: bool) -> Any:
    import trainer
    from trainer.data.dataset.manifest import Manifest

    size = work.size
    num_train = Manifest.load(work.dataset).splits["train"].num_examples
    run_dir = work.run_dir(name.replace(" ", "-"))
    trainer.train(
        work.dataset,
        run_dir=run_dir,
        settings={
            **work.measured_network_settings,
            **work.device_settings,
            "distribute.strategy": "single",
            "distribute.precision": precision,
            "distribute.xla": _FLAG_OF_XLA[is_xla],
            "train.global_batch_size": size.rate_batch,
            "train.epochs": size.rate_steps * size.rate_batch / num_train,
            # Decoding is measured by another check, and no save is in the middle.
            "data.cache": "memory",
            "checkpoint.every_steps": size.rate_steps,
            "log.every_steps": max(1, size.rate_steps // 6),
        },
        note=lambda line: print(line, flush=True),
    )
    return run_dir
