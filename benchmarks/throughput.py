"""Tokens a second of `mltune train`'s own path, against what the machine's matmuls allow.

`python benchmarks/throughput.py DIR`, where `benchmarks/shapes.py` wrote DIR. The ceiling is the
rate of a square matmul in the format of the model, measured in the same turns, over 4 FLOP (forward
pass, and backward pass without the frozen weights' gradients) for each token and parameter of the
matrices that a token is multiplied with. The lookup of input embeddings is no product; the share of
the older definition, over all parameters, is reported beside it.

Variants take turns of a few steps in one process, so that a drifting machine moves all of them:
`default`; `relaxed`, the same path with strict determinism off; `no-witness`, without any digest.
A variant KEY=VALUE is the default with that recipe value, in a process of its own afterwards.

`--twice` trains the default and each KEY=VALUE twice more, through the command, and compares the
bytes of adapter, training log and witness; the exit code is then 1 where any differ.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cases import Case, add_case_options, case_of
from fresh_process import measured_apart
from reporting import keep, mebibytes, per_second, surroundings, table
from twice import same_twice

FLOP_PER_PARAMETER = 4
NAMED = ("default", "relaxed", "no-witness")
_MATMUL_WARM_UP = 3


@dataclass(frozen=True)
class Speed:
    """Medians of one variant.

    Attributes:
        tokens_per_second: real tokens, without padding.
        of_default: the rate divided by the default's of the same sitting.
        peak_bytes: the most memory that was held during its turns.
        graphs_after_warm_up: what the compiler compiled during its counted turns; should be 0.
    """

    variant: str
    tokens_per_second: float
    of_default: float
    of_ceiling: float
    of_ceiling_over_all: float
    peak_bytes: int
    graphs_after_warm_up: int


def measure(case: Case, variants: list[str], matmul_size: int | None) -> dict[str, Any]:
    """Let variants and the matmul take turns in this process; return all turns."""
    import torch
    from stepping import Stepper, relaxed, without_witness

    kinds: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "default": contextlib.nullcontext,
        "relaxed": relaxed,
        "no-witness": without_witness,
    }
    stepper = Stepper(case.pairs(len(variants)))
    run = stepper.run
    size = matmul_size or (8192 if run.processes.device.type == "cuda" else 1024)
    dtype = getattr(torch, run.recipe.model.dtype)
    for variant in variants:
        with kinds[variant]():
            stepper.take(case.warm_up)
    flops = []
    turns: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    graphs = dict.fromkeys(variants, 0)
    for number in range(case.turns):
        flops.append(matmul_flops(size, dtype, run.processes.device))
        # Who comes first changes, too.
        for variant in variants[number % len(variants) :] + variants[: number % len(variants)]:
            before = compiled_graphs()
            with kinds[variant]():
                turn = stepper.take(case.steps_of_turn(number))
            graphs[variant] += compiled_graphs() - before
            turns[variant].append(asdict(turn) | {"tokens_per_second": turn.tokens_per_second})
    device = run.processes.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "recipe": run.recipe.bit_deciding_values(),
        "tokens_of_all_rows": run.train_data.summary.tokens,
        "matmul": {"size": size, "dtype": run.recipe.model.dtype, "flops": flops},
        "turns": turns,
        "graphs_after_warm_up": graphs,
    }


def compiled_graphs() -> int:
    """Return how many graphs the compiler has compiled in this process so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def matmul_flops(size: int, dtype: Any, device: Any, repeats: int = 5) -> float:
    """Return the FLOP a second of a square matmul: the median of a few, after a warm-up."""
    import torch
    from device import wait_for_device

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates = []
    for number in range(_MATMUL_WARM_UP + repeats):
        wait_for_device()
        start = time.perf_counter()
        torch.mm(a, b)
        wait_for_device()
        if number >= _MATMUL_WARM_UP:
            rates.append(2 * size**3 / (time.perf_counter() - start))
    return statistics.median(rates)


def parameters(folder: Path) -> tuple[int, int]:
    """Return how many parameters a token is multiplied with, and how many there are at all."""
    from mltune_cli.model_shape import model_shape

    shape = model_shape(json.loads((folder / "model" / "config.json").read_text("utf-8")))
    return shape.layer_weights + shape.vocabulary * shape.hidden, shape.parameters


def speeds_of(figures: dict[str, Any], default: float | None, folder: Path) -> list[Speed]:
    """Return the medians of a process's variants.

    Args:
        figures: as `measure` returned them.
        default: rate of the default, where another process measured it.
        folder: holds the model.
    """
    flops = statistics.median(figures["matmul"]["flops"])
    multiplied, everything = parameters(folder)
    speeds = []
    for variant, turns in figures["turns"].items():
        rate = statistics.median(turn["tokens_per_second"] for turn in turns)
        default = default or rate
        speeds.append(
            Speed(
                variant,
                rate,
                rate / default,
                rate * FLOP_PER_PARAMETER * multiplied / flops,
                rate * FLOP_PER_PARAMETER * everything / flops,
                max(turn["peak_bytes"] for turn in turns),
                figures["graphs_after_warm_up"][variant],
            )
        )
    return speeds


def printed(speeds: list[Speed], figures: dict[str, Any], folder: Path) -> str:
    """Return the table."""
    flops = statistics.median(figures["matmul"]["flops"])
    matmul, multiplied = figures["matmul"], parameters(folder)[0]
    rows = [
        [
            speed.variant, per_second(speed.tokens_per_second), speed.of_default, speed.of_ceiling,
            speed.of_ceiling_over_all, mebibytes(speed.peak_bytes), speed.graphs_after_warm_up,
        ]
        for speed in speeds
    ]  # fmt: skip
    headings = ("variant", "tokens/s", "of default", "of ceiling", "over all parameters",
                "peak memory", "late graphs")  # fmt: skip
    ceiling = flops / FLOP_PER_PARAMETER / multiplied
    return (
        f"{figures['device']}, {figures['threads']} thread(s)\n"
        f"matmul {matmul['size']}^3 {matmul['dtype']}: {flops / 1e12:.2f} TFLOP/s; ceiling over "
        f"{multiplied / 1e6:,.1f} M parameters: {per_second(ceiling)} tokens/s\n"
        + table(headings, rows)
    )


def measured_variants(case: Case, variants: list[str], matmul: list[str]) -> dict[str, Any]:
    """Measure named variants in one process, others in one each; return figures by process."""
    named = [variant for variant in variants if variant in NAMED]
    groups = {"": case} if named else {}
    groups |= {variant: case.with_value(variant) for variant in variants if "=" in variant}
    results = {}
    for name, one in groups.items():
        arguments = [*one.arguments(), *matmul, "--variants", *(["default"] if name else named)]
        results[name] = measured_apart(__file__, arguments, one.environment())
    return results


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_case_options(parser)
    parser.add_argument("--variants", nargs="+", default=["default"], metavar="VARIANT",
                        help=f"{', '.join(NAMED)}, or KEY=VALUE")  # fmt: skip
    parser.add_argument("--matmul-size", type=int)
    parser.add_argument("--twice", action="store_true", help="train twice and compare bytes")
    parser.add_argument("--second-seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for variant in arguments.variants:
        if variant not in NAMED and "=" not in variant:
            parser.error(f"{variant}: is none of {', '.join(NAMED)}, and no KEY=VALUE")
    if "default" not in arguments.variants:
        arguments.variants.insert(0, "default")
    return arguments


def main() -> int:
    """Measure, print, and tell whether training repeats, where that was asked."""
    arguments = options()
    case = case_of(arguments)
    if arguments.measure is not None:
        keep(arguments.measure, measure(case, arguments.variants, arguments.matmul_size))
        return 0
    case.write_rows()
    matmul = [] if arguments.matmul_size is None else ["--matmul-size", str(arguments.matmul_size)]
    results = measured_variants(case, arguments.variants, matmul)
    speeds: list[Speed] = []
    for name, figures in results.items():
        found = speeds_of(figures, speeds[0].tokens_per_second if speeds else None, case.folder)
        speeds += [Speed(**asdict(one) | {"variant": name or one.variant}) for one in found]
    print(printed(speeds, next(iter(results.values())), case.folder))
    report = {
        "surroundings": surroundings(),
        "case": case.facts(),
        "speeds": [asdict(speed) for speed in speeds],
        "processes": results,
    }
    equal = True
    if arguments.twice:
        cases = {"default": case} | {v: case.with_value(v) for v in arguments.variants if "=" in v}
        twice = {n: same_twice(one, arguments.second_seed) for n, one in cases.items()}
        equal = not any(twice.values())
        report["twice"] = {name: {"different": names} for name, names in twice.items()}
        for name, names in twice.items():
            print(f"{name}, trained twice: {', '.join(names) + ' DIFFER' if names else 'equal'}")
    keep(arguments.json, report)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
