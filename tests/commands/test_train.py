"""`mltune train`: what it writes depends on the recipe and on nothing around it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MltuneRun = Callable[..., Any]
REPEATED = ("training_log.jsonl", "witness.jsonl", "evaluation_log.jsonl", "last_loss.txt")


def repeated_files(folder: Path) -> dict[str, bytes]:
    files = [folder / name for name in REPEATED] + sorted((folder / "adapter").iterdir())
    return {path.name: path.read_bytes() for path in files}


def test_surroundings_leave_no_trace(mltune: MltuneRun, tmp_path: Path) -> None:
    """Hash seed, working directory, locale, time zone, threads and home do not show in a byte."""
    recipe = (
        "model: {name_or_path: mltune/tiny, device: cpu}\n"
        "data: {train: rows.jsonl, validation: rows.jsonl, max_length: 64}\n"
        "adapter: {rank: 4, dropout: 0.1}\n"
        "train: {max_steps: 3, micro_batch_size: 2, learning_rate: 2e-3}\n"
        "evaluate: {every_steps: 2}\n"
    )
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"{2 * n}"} for n in range(20)]
    surroundings = (
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC", "OMP_NUM_THREADS": "1"},
        {
            "PYTHONHASHSEED": "4242", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo",
            "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2",
            "HOME": str(tmp_path), "PYTHONUTF8": "0",
        },
    )  # fmt: skip
    results = []
    for number, env in enumerate(surroundings):
        project = tmp_path / f"project-{number}"
        (project / "deep").mkdir(parents=True)
        (project / "recipe.yaml").write_text(recipe)
        (project / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        cwd, config = (project, "recipe.yaml") if number else (project / "deep", "../recipe.yaml")
        result = mltune("train", "--config", config, "--output-dir", "out", cwd=cwd, env=env)
        assert result.code == 0, result.stderr
        results.append(repeated_files(cwd / "out"))
    assert results[0] == results[1]
    assert len(results[0]) == 7


def test_with_no_argument_it_makes_numbered_folders(
    mltune: MltuneRun, short: tuple[str, ...], tmp_path: Path
) -> None:
    for number in (1, 2):
        result = mltune("train", *short, cwd=tmp_path)
        assert result.code == 0, result.stderr
        assert f"runs/smoke-00{number}/adapter" in result.stdout
        assert "step 3/3" in result.stderr
    first, second = (repeated_files(tmp_path / "runs" / f"smoke-00{n}") for n in (1, 2))
    assert first == second


def test_overwrite_replaces_a_run_whole(
    mltune: MltuneRun, short: tuple[str, ...], finished_run: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    shutil.copytree(finished_run, target)
    (target / "training_log.jsonl").write_text("stale\n")
    (target / "checkpoints" / "step-000001").mkdir(parents=True)
    result = mltune("train", *short, "--output-dir", "out", "--overwrite", cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert repeated_files(target) == repeated_files(finished_run)
    assert not (target / "checkpoints").exists()


def test_a_full_disk_is_no_verdict(
    mltune: MltuneRun, short: tuple[str, ...], disk_of: Callable[[int], Path]
) -> None:
    """There is room for the logs, not for the adapter."""
    small_disk = disk_of(128)
    result = mltune("train", *short, "--output-dir", "out", cwd=small_disk)
    assert result.code == 125, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(r"^mltune: .*adapter.*: [Nn]o space left", result.stderr.splitlines()[-1])
    manifest = json.loads((small_disk / "out" / "manifest.json").read_text())
    assert manifest["result"]["status"] == "failed", "so that nobody takes it for a whole run"
