"""The benchmarks of speed: each runs for real at the smallest size. No test looks at a clock."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Two steps of two micro-batches of at most 128 tokens, timed one by one.
SMALL = (
    "--steps", "2", "--warm-up", "1", "--per-turn", "1", "--tokens", "128", "--micro-batch-size",
    "2", "--micro-batches", "2", "--documents", "60", "--median-words", "40",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a benchmark ended: its exit code, its table, and the JSON beside it."""

    code: int
    table: str
    report: dict[str, Any]


Benchmark = Callable[..., Ended]


@pytest.fixture
def benchmark_command(project: Path, tmp_path: Path) -> Benchmark:
    """Run one of the benchmarks in a process of its own, with `--json`."""

    def run(name: str, *arguments: str | Path) -> Ended:
        path = tmp_path / "report.json"
        done = subprocess.run(
            [sys.executable, project / "benchmarks" / name, *arguments, "--json", path],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert path.is_file(), done.stderr
        return Ended(done.returncode, done.stdout, json.loads(path.read_text("utf-8")))

    return run


@pytest.fixture(scope="module")
def tiny(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shape, as `benchmarks/shapes.py` writes it."""
    folder = tmp_path_factory.mktemp("shapes") / "tiny"
    script = project / "benchmarks" / "shapes.py"
    subprocess.run([sys.executable, script, "tiny", folder], check=True, capture_output=True)
    return folder


def test_throughput_compares_its_variants_and_training_repeats(
    benchmark_command: Benchmark, tiny: Path
) -> None:
    variants = ("default", "relaxed", "no-witness")
    ended = benchmark_command(
        "throughput.py", tiny, *SMALL, "--matmul-size", "64", "--variants", *variants, "--twice"
    )
    assert ended.code == 0, ended.table
    speeds = ended.report["speeds"]
    assert [speed["variant"] for speed in speeds] == list(variants)
    assert speeds[0]["of_default"] == 1
    assert all(speed["tokens_per_second"] > 0 and speed["peak_bytes"] > 0 for speed in speeds)
    assert all(0 < speed["of_ceiling"] <= speed["of_ceiling_over_all"] for speed in speeds)
    figures = ended.report["processes"][""]
    # Packs are full but for the last: real tokens, and never more than there is room for.
    for turns in figures["turns"].values():
        assert [turn["steps"] for turn in turns] == [1, 1]
        assert all(300 < turn["tokens"] <= 2 * 2 * 128 for turn in turns)
    assert figures["recipe"]["data.packing"] is True
    assert ended.report["twice"] == {"default": {"different": []}}
    assert "default, trained twice: equal" in ended.table
    assert str(tiny) not in json.dumps(ended.report)


@pytest.mark.long
def test_throughput_notices_a_training_that_does_not_repeat(
    benchmark_command: Benchmark, tiny: Path
) -> None:
    ended = benchmark_command(
        "throughput.py", tiny, *SMALL, "--matmul-size", "64", "--twice", "--second-seed", "7"
    )
    assert ended.code == 1
    different = ended.report["twice"]["default"]["different"]
    assert "adapter/adapter_model.safetensors" in different
    assert "witness.jsonl" in different
    assert "DIFFER" in ended.table


def test_a_mistyped_variant_is_refused(project: Path, tiny: Path) -> None:
    script = project / "benchmarks" / "throughput.py"
    done = subprocess.run(
        [sys.executable, script, tiny, "--variants", "relaxt"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "relaxt" in done.stderr


@pytest.mark.long
def test_peers_train_on_the_same_rows_and_what_cannot_run_is_said(
    benchmark_command: Benchmark, tiny: Path
) -> None:
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed")
    ended = benchmark_command(
        "peers.py", tiny, *SMALL, "--matmul-size", "64",
        "--configurations", "ours", "trl-padded", "trl-stock", "trl-best",
        "--flash", "flash_attention_9",
    )  # fmt: skip
    assert ended.code == 0, ended.table
    ours, padded, stock, best = ended.report["configurations"]
    assert [one["name"] for one in (ours, padded, stock, best)] == [
        "ours", "trl-padded", "trl-stock", "trl-best",
    ]  # fmt: skip
    assert ours["ours_over_it"] == 1
    for one in (ours, padded, stock):
        assert one["tokens_per_second"] > 0
        assert one["peak_bytes"] > 0
        assert one["why_not"] is None
    assert best["tokens_per_second"] is None
    assert "trl-best: not available: flash_attention_9: " in ended.table
    processes = ended.report["processes"]
    totals = {
        name: processes[name][0]["tokens_of_all_rows"]
        for name in ("ours", "trl-padded", "trl-stock")
    }
    assert totals["ours"] == totals["trl-padded"] >= totals["trl-stock"] > 0, totals
    per_turn = {name: [turn["tokens"] for turn in processes[name][0]["turns"]] for name in totals}
    # Two micro-batches of two rows of at most 128 tokens, whoever trains.
    assert all(0 < tokens <= 512 for turns in per_turn.values() for tokens in turns)
    assert all(len(turns) == 2 for turns in per_turn.values())


@pytest.mark.long
def test_sequence_length_takes_the_same_tokens_at_every_length(
    benchmark_command: Benchmark, tiny: Path
) -> None:
    # The last is longer than the model has positions for.
    lengths = ("64", "256", "200000")
    ended = benchmark_command(
        "sequence_length.py", tiny, "--steps", "2", "--warm-up", "0", "--per-turn", "1",
        "--tokens-per-micro-batch", "256", "--lengths", *lengths,
    )  # fmt: skip
    assert ended.code == 0, ended.table
    short, long, too_long = ended.report["lengths"]
    assert (short["tokens"], short["micro_batch_size"]) == (64, 4)
    assert (long["tokens"], long["micro_batch_size"]) == (256, 1)
    for one in (short, long):
        assert one["tokens_per_step"] == 256
        assert one["microseconds_per_token"] > 0
        assert one["peak_bytes"] > 0
    assert short["of_shortest"] == 1
    assert "positions" in too_long["why_not"]


@pytest.mark.long
def test_data_size_finds_the_second_time_what_was_tokenised(
    benchmark_command: Benchmark,
) -> None:
    ended = benchmark_command("data_size.py", "--sizes", "50", "--rounds", "1", "--packing", "on")
    assert ended.code == 0, ended.table
    (figures,) = ended.report["sizes"]
    assert (figures["rows"], figures["packing"]) == (50, True)
    for stage in ("tokenising", "cached", "start"):
        assert figures[f"{stage}_seconds"] > 0
        assert figures[f"{stage}_bytes"] > 0
    assert figures["tokenising_bytes"] >= figures["idle_bytes"] > 0
    assert figures["cache_bytes"] > 0
    assert "packed, 50 rows against 50" in ended.table


@pytest.mark.parametrize(
    ("tolerance", "code"), [("0.5", 0), pytest.param("0", 1, marks=pytest.mark.long)]
)
def test_losses_of_other_kernels_are_compared(
    benchmark_command: Benchmark, tiny: Path, tolerance: str, code: int
) -> None:
    # On a CPU the plain kernels are the default: another seed makes the difference.
    variants = ["reproducibility.seed=7", "plain"]
    ended = benchmark_command(
        "losses.py", tiny, *SMALL, "--steps", "3", "--variants", *variants,
        "--tolerance", tolerance,
    )  # fmt: skip
    assert ended.code == code, ended.table
    losses = {name: one["losses"] for name, one in ended.report["processes"].items()}
    assert [len(mine) for mine in losses.values()] == [3, 3]
    first, second = losses.values()
    expected = max(abs(a - b) for a, b in zip(first, second, strict=True))
    assert ended.report["largest_differences"] == {variants[0]: 0.0, "plain": expected}
    assert expected > 0
    assert f"{expected:.4f}" in ended.table
