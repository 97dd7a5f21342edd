"""Losses over the same rows: the fast kernels, the plain ones, and a base in eight bits.

`python benchmarks/losses.py DIR`, where `benchmarks/shapes.py` wrote DIR. `default` is what
`mltune train` takes by itself, `plain` is transformers' and peft's own code with all scores at once
and nothing compiled, and KEY=VALUE is the default with that recipe value. Each trains in a process
of its own, for `--steps` steps. Reported are losses along the way and the largest difference from
the default's; the exit code is 1 where that of `plain` is more than `--tolerance`. Rounding in
bfloat16 differs between kernels, and training carries each difference on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from cases import Case, add_case_options, case_of
from fresh_process import measured_apart
from reporting import keep, surroundings, table

VARIANTS = ("default", "plain", "model.base_precision=fp8")
PLAIN = (
    "model.attention=sdpa", "model.compile=false", "train.loss_kernel=whole",
    "adapter.compute_dtype=float32", "data.packing=true",
)  # fmt: skip
_SHOWN = 11


def case_with(case: Case, variant: str) -> Case:
    """Return the case of a variant."""
    for value in {"default": (), "plain": PLAIN}.get(variant, (variant,)):
        case = case.with_value(value)
    return case


def measure(case: Case) -> dict[str, Any]:
    """Train in this process; return the losses in nats."""
    from stepping import Stepper

    stepper = Stepper(case.pairs())
    stepper.take(case.steps)
    return {"losses": stepper.losses, "recipe": stepper.run.recipe.bit_deciding_values()}


def largest_differences(losses: dict[str, list[float]]) -> dict[str, float]:
    """Return the largest difference of each variant's losses from the first one's."""
    first, *_ = losses.values()
    return {
        name: max(abs(a - b) for a, b in zip(mine, first, strict=True))
        for name, mine in losses.items()
    }


def printed(losses: dict[str, list[float]], differences: dict[str, float]) -> str:
    """Return the table: a row for some steps, and one for the largest differences."""
    count = len(next(iter(losses.values())))
    shown = sorted({round(place * (count - 1) / (_SHOWN - 1)) for place in range(_SHOWN)})
    rows = [[str(step + 1), *(f"{mine[step]:.4f}" for mine in losses.values())] for step in shown]
    rows.append(["largest difference", *(f"{differences[name]:.4f}" for name in losses)])
    return table(("step", *losses), rows)


def main() -> int:
    """Train each variant and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_case_options(parser)
    parser.set_defaults(steps=50, warm_up=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--tolerance", type=float, default=0.1, help="nats")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case = case_of(arguments)
    if arguments.measure is not None:
        keep(arguments.measure, measure(case))
        return 0
    case.write_rows()
    processes = {}
    for variant in arguments.variants:
        one = case_with(case, variant)
        processes[variant] = measured_apart(__file__, one.arguments(), one.environment())
    losses = {name: figures["losses"] for name, figures in processes.items()}
    differences = largest_differences(losses)
    print(printed(losses, differences))
    report = {
        "surroundings": surroundings(), "case": case.facts(), "processes": processes,
        "largest_differences": differences,
    }  # fmt: skip
    keep(arguments.json, report)
    return int(differences.get("plain", 0.0) > arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
