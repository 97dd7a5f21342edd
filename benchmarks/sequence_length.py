"""Seconds per token of a step, and memory, over the length of its documents.

`python benchmarks/sequence_length.py DIR`, where `benchmarks/shapes.py` wrote DIR. Every step has
the same number of tokens: eight documents of 2048, or one of 16384. Documents are as long as
`data.max_length`, so that each fills a pack and attention really spans that length. Each length is
measured in a process of its own, with the path that `mltune train` takes.
"""

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cases import Case, add_case_options, case_of
from fresh_process import FailedMeasurementError, measured_apart
from reporting import keep, mebibytes, surroundings, table

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
# Options of a case that the lengths decide.
FOLLOWING = ("tokens", "micro_batch_size", "documents", "median_words", "spread")


@dataclass(frozen=True)
class LengthFigures:
    """What steps of one length cost.

    Attributes:
        tokens: of a document.
        micro_batch_size: documents of a micro-batch.
        tokens_per_step: real tokens, as they were counted.
        microseconds_per_token: median over turns.
        of_shortest: that, divided by the shortest length's.
        why_not: why there are no figures; None where there are.
    """

    tokens: int
    micro_batch_size: int
    tokens_per_step: float | None = None
    microseconds_per_token: float | None = None
    of_shortest: float | None = None
    peak_bytes: int | None = None
    why_not: str | None = None


def case_with(case: Case, length: int, tokens_per_micro_batch: int) -> Case:
    """Return the case of one length: documents that fill a pack each."""
    size = max(1, tokens_per_micro_batch // length)
    units = (case.warm_up + case.steps) * case.micro_batches * size
    return replace(
        case,
        tokens=length,
        micro_batch_size=size,
        documents=units,
        # A word makes at least one token, so each document is cut at the length.
        median_words=length,
        spread=0.0,
    )


def measure(case: Case) -> dict[str, Any]:
    """Take the steps of one length in this process; return their turns."""
    from stepping import Stepper

    stepper = Stepper(case.pairs())
    if case.warm_up:
        stepper.take(case.warm_up)
    turns = [stepper.take(case.steps_of_turn(number)) for number in range(case.turns)]
    return {"turns": [asdict(turn) for turn in turns]}


def figures_of(case: Case) -> LengthFigures:
    """Measure one length in a process of its own."""
    case.write_rows()
    try:
        turns = measured_apart(__file__, case.arguments(), case.environment())["turns"]
    except FailedMeasurementError as error:
        reason = str(error).splitlines()[-1]
        return LengthFigures(case.tokens, case.micro_batch_size, why_not=reason)
    return LengthFigures(
        case.tokens,
        case.micro_batch_size,
        sum(turn["tokens"] for turn in turns) / case.steps,
        statistics.median(turn["seconds"] / turn["tokens"] * 1e6 for turn in turns),
        peak_bytes=max(turn["peak_bytes"] for turn in turns),
    )


def compared(figures: list[LengthFigures]) -> list[LengthFigures]:
    """Return the figures with their ratios to the shortest length that could be measured."""
    times = [one.microseconds_per_token for one in figures if one.microseconds_per_token]
    return [
        replace(one, of_shortest=one.microseconds_per_token / times[0])
        if one.microseconds_per_token
        else one
        for one in figures
    ]


def printed(figures: list[LengthFigures]) -> str:
    """Return the table."""
    rows = [
        [
            one.tokens, one.micro_batch_size, one.microseconds_per_token, one.of_shortest,
            one.why_not or mebibytes(one.peak_bytes or 0),
        ]
        for one in figures
    ]  # fmt: skip
    return table(("max_length", "rows", "µs/token", "of shortest", "peak memory"), rows)


def main() -> int:
    """Measure each length and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_case_options(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--tokens-per-micro-batch", type=int, default=16384)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case = case_of(arguments)
    if arguments.measure is not None:
        keep(arguments.measure, measure(case))
        return 0
    for name in FOLLOWING:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: follows from --lengths")
    per_micro_batch = arguments.tokens_per_micro_batch
    figures = compared(
        [figures_of(case_with(case, length, per_micro_batch)) for length in arguments.lengths]
    )
    print(printed(figures))
    report = {
        "surroundings": surroundings(),
        "tokens_per_step": per_micro_batch * case.micro_batches,
        "case": case.facts(),
        "lengths": [asdict(one) for one in figures],
    }
    keep(arguments.json, report)
    return 0 if any(one.why_not is None for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
