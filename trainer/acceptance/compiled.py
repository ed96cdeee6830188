"""Read from XLA's own dump what it compiled in this process."""

import os
import pathlib
import re
from collections import Counter
from typing import Final

# A line of an HLO text: `%name = bf16[3,3,8,16]{3,2,1,0} convolution(...), ..., metadata={op_type="Conv2D" ...`.
_CONVOLUTION: Final = re.compile(r"= (\w+)\[[\d,]*\]\S* convolution\(.*op_type=\"(\w+)\"")
# After XLA's optimisations for GPUs, a call of cuDNN: `= (bf16[...]{...}, u8[0]{0}) custom-call(...), ...,
# custom_call_target="__cudnn$convForward"`.
_CUDNN: Final = re.compile(r"= \((\w+)\[.*custom_call_target=\"__cudnn\$(conv\w+)\"")


def dump_flags(dump_dir: pathlib.Path) -> str:
    """Return XLA_FLAGS that keep the HLO of every module that is compiled; they count when XLA is first used."""
    return f"--xla_dump_to={dump_dir} --xla_dump_hlo_as_text"


def start_dump(dump_dir: pathlib.Path) -> None:
    """Have this process keep the HLO in `dump_dir`; call it before TensorFlow is imported."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump_flags(dump_dir)}".strip()


def compiled_convolutions(dump_dir: pathlib.Path, *, seen: set[pathlib.Path]) -> list[tuple[str, str]]:
    """Return the (operation, dtype) of the convolutions of the modules that are not in `seen`, which grows by them.

    As they were before XLA's optimisations: on CPUs, these compute bfloat16 in float32.
    """
    modules = set(dump_dir.glob("*.before_optimizations.txt")) - seen
    seen |= modules
    found = [match for module in sorted(modules) for match in _CONVOLUTION.findall(module.read_text(encoding="utf-8"))]
    return sorted((operation, dtype) for dtype, operation in found)


def cudnn_calls(dump_dir: pathlib.Path) -> dict[str, int]:
    """Count the calls of cuDNN's convolutions in the optimised modules of GPUs, as {"convForward bf16": 12}."""
    counts: Counter[str] = Counter()
    for module in sorted(dump_dir.glob("*gpu_after_optimizations.txt")):
        counts.update(f"{call} {dtype}" for dtype, call in _CUDNN.findall(module.read_text(encoding="utf-8")))
    return dict(sorted(counts.items()))
