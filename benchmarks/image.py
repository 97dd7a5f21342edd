"""What an image costs: from nothing, from the cache, after a change of mltune's own code.

``python benchmarks/image.py --base REF [--wheelhouse DIR] [--rounds N] [--json FILE]``, with a
Docker engine (`DOCKER_HOST`). Nothing is run in the images.
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
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PARTS = ("mltune_cli", "templates", "repro_dataset", "requirements.txt", "requirements-gpu.txt")


def built(checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """Build with the mltune of a checkout; return the command's and the build's own seconds.

    Raises:
        subprocess.CalledProcessError: the build failed, so its time means nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "mltune_cli", "build-image", "--no-run", "--json", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
    return seconds, float(json.loads(done.stdout)["build_seconds"])


def copied(folder: Path) -> Path:
    """Copy what mltune consists of, so that its code can be changed."""
    for name in PARTS:
        source, target = PROJECT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--wheelhouse", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    arguments = ["--base", given.base]
    if given.wheelhouse is not None:
        arguments += ["--wheelhouse", str(given.wheelhouse.resolve())]
    times: dict[str, list[tuple[float, float]]] = {"from the cache": [], "code changed": []}
    with tempfile.TemporaryDirectory() as folder:
        checkout = copied(Path(folder))
        times["from nothing"] = [built(checkout, [*arguments, "--no-cache"])]
        for number in range(given.rounds):
            times["from the cache"].append(built(checkout, arguments))
            (checkout / "mltune_cli" / "changed.py").write_text(f"ROUND = {number}\n")
            times["code changed"].append(built(checkout, arguments))
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in times.items()
    }
    whole = medians["from nothing"][0]
    print("| build | the command | the build alone | of a build from nothing |")
    print("| --- | --- | --- | --- |")
    for name in ("from nothing", "from the cache", "code changed"):
        command, build = medians[name]
        print(f"| {name} | {command:.1f} s | {build:.1f} s | {command / whole:.3f} |")
    if given.json is not None:
        given.json.write_text(json.dumps({"seconds": times, "medians": medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()
