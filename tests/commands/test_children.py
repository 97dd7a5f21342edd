"""`repro-check -- COMMAND` of scripts that train in children of `multiprocessing`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import multiprocessing, random
from pathlib import Path

def prepare(number):
    return number * number

def train(seed):
    import torch
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 4):
        rows = torch.ones(2, 4)
        {at_step}
        model(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

if __name__ == "__main__":
    start = multiprocessing.get_context("spawn")
    cache = Path("cache")
    if not cache.exists():
        with start.Pool(2) as pool:
            rows = pool.map(prepare, range(4))
        cache.mkdir()
        (cache / "rows").write_text(str(rows))
    children = [start.Process(target=train, args=(seed,)) for seed in {seeds}]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
"""
Check = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def check(mltune: Any, tmp_path: Path) -> Check:
    """Check the script with some of its places filled in, and read the report."""

    def run(**places: str) -> Any:
        filled = {"at_step": "pass", "seeds": "(1,)", **places}
        (tmp_path / "train.py").write_text(SCRIPT.format(**filled))
        result = mltune("repro-check", "--", sys.executable, "train.py", cwd=tmp_path, timeout=400)
        report = json.loads((tmp_path / "repro_output" / "report.json").read_text())
        return result.code, report, result.stdout + result.stderr

    return run


def streams(folder: Path, run: int) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"repro_output/run-{run}/witness/*.jsonl"))


def test_a_pool_that_one_run_alone_starts_is_no_difference(check: Check, tmp_path: Path) -> None:
    code, report, output = check(seeds="(1, 2)")
    assert streams(tmp_path, 1) == ["child-3", "child-4"]
    assert streams(tmp_path, 2) == ["child-1", "child-2"]
    assert (code, report["verdict"], report["compared_steps"]) == (0, "reproducible", 3), output
    assert [run["steps"] for run in report["runs"]] == [3, 3]


def test_a_real_difference_in_such_a_child_is_found_and_explained(
    check: Check, tmp_path: Path
) -> None:
    code, report, output = check(at_step="if step == 2: rows *= random.random()")
    assert (streams(tmp_path, 1), streams(tmp_path, 2)) == (["child-3"], ["child-1"])
    assert code == 1, output
    difference = report["first_difference"]
    assert (difference["step"], difference["stage"], difference["process"]) == (
        2,
        "loss",
        "child-3",
    )
    # Run again, the child is the first one that is started.
    assert report["localisation"] is not None, output
    assert report["localisation"]["process"] == "child-3"
    assert report["localisation"]["frame"].startswith("train.py")
    assert report["diagnosis"]["cause"] == "unseeded-random-numbers", output
