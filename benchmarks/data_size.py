"""What the number of rows costs: tokenising them once, and every start after that.

`python benchmarks/data_size.py` writes data sets of 10^3 to 10^6 short documents into a folder of
its own, and for each, packed and unpacked, in fresh processes: prepares the data set, which
tokenises it; prepares it again, which finds it in the cache; and trains the bundled tiny model for
one step, `--rounds` times. Reported are wall seconds and peak resident memory. After the first
tokenisation both should be flat: the last lines compare the largest data set with the smallest.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from documents import write_documents
from fresh_process import measured_apart
from reporting import keep, mebibytes, surroundings, table

MAX_LENGTH = 128
MODEL = "mltune/tiny"


@dataclass(frozen=True)
class SizeFigures:
    """What one data set costs; the medians of all rounds but for the first preparation.

    Attributes:
        rows: of the file.
        tokenising_seconds: of the preparation that tokenises.
        cached_seconds: of a preparation that finds all that in the cache.
        start_seconds: from `mltune train` to the end of its first step.
        tokenising_bytes: peak of the process, its imports included; likewise the others.
        idle_bytes: peak of the process before it prepared anything.
        file_bytes: of the rows.
        cache_bytes: of what was tokenised.
    """

    rows: int
    packing: bool
    tokenising_seconds: float
    cached_seconds: float
    start_seconds: float
    tokenising_bytes: int
    cached_bytes: int
    start_bytes: int
    idle_bytes: int
    file_bytes: int
    cache_bytes: int


def pairs_of(rows: Path, packing: bool) -> dict[str, str]:
    """Return the recipe as `--set` pairs: one step, no held-out rows."""
    return {
        "data.train": str(rows),
        "data.validation": "null",
        "data.format": "text",
        "data.max_length": str(MAX_LENGTH),
        "data.packing": str(packing).lower(),
        "data.loss_on": "all",
        "train.max_steps": "1",
        "train.warmup_steps": "0",
        "evaluate.every_steps": "0",
    }


def measure(rows: Path, packing: bool) -> dict[str, Any]:
    """Prepare the data set in this process as `mltune train` does."""
    from device import process_peak_bytes
    from transformers import AutoTokenizer

    from mltune_cli.bundled import bundled_model
    from mltune_cli.digests import files_digest
    from mltune_cli.recipe.layers import load_recipe
    from mltune_cli.training.data.dataset import prepare_dataset
    from mltune_cli.training.data.sources import find_source
    from mltune_cli.training.model import TOKENIZER_FILES

    assignments = [f"{key}={value}" for key, value in pairs_of(rows, packing).items()]
    recipe = load_recipe(None, {}, assignments).recipe
    folder = bundled_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    present = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
    digest = files_digest(folder, present)
    idle = process_peak_bytes()
    start = time.perf_counter()
    source = find_source("data.train", str(rows), None)
    dataset = prepare_dataset(source, recipe.data, tokenizer, digest)
    seconds = time.perf_counter() - start
    peak = process_peak_bytes()
    return {"seconds": seconds, "peak_bytes": peak, "idle_bytes": idle, "units": len(dataset)}


def prepared(rows: Path, packing: bool, cache: Path) -> dict[str, Any]:
    """Prepare a data set in a fresh process, in the environment of a worker."""
    from mltune_cli.launching.environment import worker_environment
    from mltune_cli.recipe.schema import Recipe

    environment = worker_environment(Recipe(), os.environ) | {"MLTUNE_CACHE": str(cache)}
    # What the recipe above needs is all here; its model and rows are not named in this one.
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    packed = ["--packed"] if packing else []
    return measured_apart(__file__, ["--rows", str(rows), *packed], environment)


def started(rows: Path, packing: bool, cache: Path, folder: Path) -> tuple[float, int]:
    """Train one step through the command; return its seconds and the worker's peak memory.

    Raises:
        RuntimeError: it failed, or it found other tokens than the preparations before.
    """
    run = folder / "run"
    command = [sys.executable, "-m", "mltune_cli", "train", "--output-dir", str(run)]
    for key, value in pairs_of(rows, packing).items():
        command += ["--set", f"{key}={value}"]
    entries = len(list((cache / "tokenised").iterdir()))
    environment = os.environ | {"MLTUNE_CACHE": str(cache)}
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"mltune train ended with {done.returncode}: {done.stderr}")
    if len(list((cache / "tokenised").iterdir())) != entries:
        raise RuntimeError("mltune train tokenised the rows anew, so its start says nothing")
    # Written through when the step is done, before anything is saved.
    timings = run / "timings.jsonl"
    seconds = timings.stat().st_mtime - start
    peak = int(read_timings(timings)[-1]["peak_memory_bytes"])
    shutil.rmtree(run)
    return seconds, peak


def read_timings(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's timings."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class DataSet:
    """One file of rows, packed or not, with a cache of its own."""

    rows: Path
    count: int
    packing: bool
    cache: Path


def measured(sets: list[DataSet], folder: Path, rounds: int) -> list[SizeFigures]:
    """Tokenise each data set once; then prepare and start on all of them in turn, rounds over.

    In turn, so that a machine that drifts moves all sizes alike.
    """
    first = [prepared(one.rows, one.packing, one.cache) for one in sets]
    again: list[list[dict[str, Any]]] = [[] for _ in sets]
    starts: list[list[tuple[float, int]]] = [[] for _ in sets]
    for _ in range(rounds):
        for number, one in enumerate(sets):
            again[number].append(prepared(one.rows, one.packing, one.cache))
            starts[number].append(started(one.rows, one.packing, one.cache, folder))
    return [figures_of(*parts) for parts in zip(sets, first, again, starts, strict=True)]


def figures_of(
    data: DataSet,
    first: dict[str, Any],
    again: list[dict[str, Any]],
    starts: list[tuple[float, int]],
) -> SizeFigures:
    """Return the medians of one data set."""
    files = [path for path in data.cache.rglob("*") if path.is_file()]
    return SizeFigures(
        rows=data.count,
        packing=data.packing,
        tokenising_seconds=first["seconds"],
        cached_seconds=statistics.median(one["seconds"] for one in again),
        start_seconds=statistics.median(seconds for seconds, _ in starts),
        tokenising_bytes=first["peak_bytes"],
        cached_bytes=int(statistics.median(one["peak_bytes"] for one in again)),
        start_bytes=int(statistics.median(peak for _, peak in starts)),
        idle_bytes=first["idle_bytes"],
        file_bytes=data.rows.stat().st_size,
        cache_bytes=sum(path.stat().st_size for path in files),
    )


def printed(figures: list[SizeFigures]) -> str:
    """Return the table, and how far from flat the starts are."""
    rows = [
        [
            f"{one.rows:,}", "yes" if one.packing else "no", mebibytes(one.file_bytes),
            one.tokenising_seconds, mebibytes(one.tokenising_bytes), one.cached_seconds,
            mebibytes(one.cached_bytes), one.start_seconds, mebibytes(one.start_bytes),
        ]
        for one in figures
    ]  # fmt: skip
    headings = ("rows", "packed", "file", "first, s", "peak", "cached, s", "peak", "to step 1, s",
                "peak")  # fmt: skip
    lines = [table(headings, rows)]
    for packing in sorted({one.packing for one in figures}):
        alike = sorted((one for one in figures if one.packing is packing), key=lambda one: one.rows)
        least, most = alike[0], alike[-1]
        lines.append(
            f"{'packed' if packing else 'unpacked'}, {most.rows:,} rows against {least.rows:,}: "
            f"start {most.start_seconds / least.start_seconds:.2f} times as long, "
            f"memory {most.start_bytes / least.start_bytes:.2f} times"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure each size and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--median-words", type=int, default=24, help="of a document")
    parser.add_argument("--packing", choices=("on", "off", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    for hidden in ("--measure", "--rows"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--packed", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        keep(arguments.measure, measure(arguments.rows, arguments.packed))
        return
    packings = {"on": (True,), "off": (False,), "both": (False, True)}[arguments.packing]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = []
        for count in arguments.sizes:
            rows = write_documents(folder / f"{count}.jsonl", count, arguments.median_words, 0.8)
            sets += [
                DataSet(rows, count, packing, folder / f"cache-{count}-{packing}")
                for packing in packings
            ]
        figures = measured(sets, folder, arguments.rounds)
    print(printed(figures))
    report = {"surroundings": surroundings(), "sizes": [asdict(one) for one in figures]}
    keep(arguments.json, report)


if __name__ == "__main__":
    main()
