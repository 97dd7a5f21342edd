"""TRL's SFTTrainer against mltune in one sitting: same rows, same tokenizer, same steps.

`python benchmarks/peers.py DIR`, where `benchmarks/shapes.py` wrote DIR. LoRA r=16 on all linear
layers, bfloat16, `--micro-batch-size` rows or packs of `--tokens` a micro-batch. Each configuration
runs in a process of its own, one after another, `--rounds` times:

- `ours`: `mltune train`'s own path, strictly deterministic, with its witness;
- `trl-padded`: TRL's defaults, rows padded to the longest of their micro-batch;
- `trl-stock`: the same, packed, on the attention of a plain install (sdpa);
- `trl-stock-liger`: the same with Liger's kernels;
- `trl-best`: packed, with FlashAttention's kernels, and Liger's where they are installed; where the
  package flash-attn is not, with torch's own copies of FlashAttention-2's kernels.

One default of TRL's is not taken, since it would slow it down: activation checkpointing is off for
all, or on for all with `--activation-checkpointing`. What cannot run is reported as not available,
with the reason. Only real tokens count, never padding.
"""

import argparse
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cases import Case, add_case_options, case_of
from fresh_process import FailedMeasurementError, measured_apart
from reporting import keep, mebibytes, per_second, surroundings, table
from throughput import FLOP_PER_PARAMETER, measured_variants, parameters
from torch_flash import offer
from trl_configuration import BORROWED, FLASH, Configuration, candidates, why_unavailable

OURS = "ours"
NAMES = (OURS, "trl-padded", "trl-stock", "trl-stock-liger", "trl-best")


@dataclass(frozen=True)
class PeerFigures:
    """What one configuration came to.

    Attributes:
        tokens_per_second: median over turns, real tokens; None where it could not run.
        ours_over_it: our rate divided by its rate.
        of_ceiling: of the matmul rate in our process, as `throughput.py` defines it.
        attention: of TRL; None for ours, whose recipe tells.
        why_not: why there are no figures; None where there are.
    """

    name: str
    tokens_per_second: float | None = None
    ours_over_it: float | None = None
    of_ceiling: float | None = None
    peak_bytes: int | None = None
    attention: str | None = None
    liger: bool | None = None
    why_not: str | None = None


def run_peer(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Run one configuration of TRL's in a process of its own; a reason where none could run."""
    reasons: dict[str, list[str]] = {}
    for configuration in candidates(name, options.flash):
        reason = why_unavailable(configuration)
        if reason is None:
            arguments = [*case.arguments(), "--attention", configuration.attention]
            arguments += ["--packing"] if configuration.packing else []
            arguments += ["--liger"] if configuration.liger else []
            arguments += ["--activation-checkpointing"] if options.activation_checkpointing else []
            try:
                return measured_apart(__file__, arguments, peer_environment(case))
            except FailedMeasurementError as error:
                reason = str(error).splitlines()[-1]
        reasons.setdefault(reason, []).append(configuration.attention)
    texts = [f"{', '.join(kernels)}: {reason}" for reason, kernels in reasons.items()]
    return {"why_not": "; ".join(texts)}


def peer_environment(case: Case) -> dict[str, str]:
    """Return the environment of TRL's process: no hub, and the CPU threads that we have."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(case.cache / "datasets"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def run_ours(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Run mltune's own path in a process of its own."""
    checkpointing = str(options.activation_checkpointing).lower()
    ours = case.with_value(f"train.activation_checkpointing={checkpointing}")
    size = options.matmul_size
    matmul = [] if size is None else ["--matmul-size", str(size)]
    figures: dict[str, Any] = measured_variants(ours, ["default"], matmul)[""]
    return {**figures, "turns": figures["turns"]["default"]}


def compared(results: dict[str, list[dict[str, Any]]], folder: Path) -> list[PeerFigures]:
    """Return the figures of all configurations, their rounds taken together."""
    ours = _rate([turn for one in results[OURS] for turn in one["turns"]])
    flops = statistics.median(rate for one in results[OURS] for rate in one["matmul"]["flops"])
    figures = []
    for name, rounds in results.items():
        turns = [turn for one in rounds for turn in one.get("turns", [])]
        if not turns:
            figures.append(PeerFigures(name, why_not=rounds[0]["why_not"]))
            continue
        rate, facts = _rate(turns), rounds[0].get("configuration", {})
        figures.append(
            PeerFigures(
                name, rate, ours / rate, rate * FLOP_PER_PARAMETER * parameters(folder)[0] / flops,
                max(turn["peak_bytes"] for turn in turns), facts.get("attention"),
                facts.get("liger"),
            )
        )  # fmt: skip
    return figures


def _rate(turns: list[dict[str, Any]]) -> float:
    rates: list[float] = [turn["tokens_per_second"] for turn in turns]
    return statistics.median(rates)


def printed(figures: list[PeerFigures]) -> str:
    """Return the table; what could not run follows it."""
    rows = [
        [
            one.name, per_second(one.tokens_per_second), one.ours_over_it, one.of_ceiling,
            mebibytes(one.peak_bytes or 0), one.attention, one.liger,
        ]
        for one in figures
        if one.tokens_per_second is not None
    ]  # fmt: skip
    headings = ("configuration", "tokens/s", "ours / it", "of ceiling", "peak memory", "attention",
                "liger")  # fmt: skip
    missing = [f"{one.name}: not available: {one.why_not}" for one in figures if one.why_not]
    return "\n".join([table(headings, rows), *missing])


def command_line() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_case_options(parser)
    add = parser.add_argument
    add("--configurations", nargs="+", choices=NAMES, default=NAMES)
    add("--rounds", type=int, default=1)
    add("--flash", nargs="+", default=list(FLASH), help="kernels that trl-best tries, in order")
    add("--activation-checkpointing", action="store_true", help="on for all")
    add("--matmul-size", type=int)
    add("--json", type=Path)
    for name in ("--measure", "--attention"):
        add(name, type=Path if name == "--measure" else str, help=argparse.SUPPRESS)
    for name in ("--packing", "--liger"):
        add(name, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure each configuration and print."""
    options = command_line()
    case = case_of(options)
    if options.measure is not None:
        if options.attention == BORROWED:
            offer(case.cache / BORROWED)
        from trl_training import measure_trl

        configuration = Configuration(options.packing, options.attention, options.liger)
        checkpointing = options.activation_checkpointing
        keep(options.measure, measure_trl(case, configuration, checkpointing=checkpointing))
        return 0
    # With several in sight, TRL would spread each batch over all of them.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    case.write_rows()
    names = [OURS, *(name for name in options.configurations if name != OURS)]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            if name == OURS:
                results[name].append(run_ours(case, options))
            else:
                results[name].append(run_peer(name, case, options))
    figures = compared(results, case.folder)
    print(printed(figures))
    report = {
        "surroundings": surroundings(),
        "case": case.facts(),
        "configurations": [asdict(one) for one in figures],
        "processes": results,
    }
    keep(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
