"""`--vary` of recipes: mltune's own training depends on none of the conditions."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_the_bundled_recipe_depends_on_no_condition(
    mltune: Any, short: tuple[str, ...], tmp_path: Path
) -> None:
    conditions = (
        "loader-workers=2", "processes=2", "evaluation=1", "hash-seed", "directory-order", "clock",
        "time-zone", "home", "umask", "working-directory", "log.every_steps=2", "kill-and-resume",
    )  # fmt: skip
    flags = [part for condition in conditions for part in ("--vary", condition)]
    result = mltune("repro-check", *short, *flags, cwd=tmp_path)
    assert result.code == 0, result.stdout + result.stderr
    output = tmp_path / "repro_output"
    report = json.loads((output / "report.json").read_text())
    assert [text.partition("=")[0] for text in report["variation"]] == [
        condition.partition("=")[0] for condition in conditions
    ]
    assert (output / "run-2" / "checkpoints").is_dir(), "there was nothing to go on from"
    assert not (output / "run-1" / "checkpoints").exists()
    manifest = json.loads((output / "run-2" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert stat.S_IMODE((output / "run-2" / "manifest.json").stat().st_mode) == 0o600


@pytest.mark.long
@pytest.mark.parametrize(
    "condition",
    ["loader-workers=2", "processes=2", "evaluation=1", "kill-and-resume", "hash-seed",
     "directory-order", "clock", "time-zone", "cold-cache", "locale"],
)  # fmt: skip
def test_the_bundled_recipe_under_one_condition(
    mltune: Any, short: tuple[str, ...], tmp_path: Path, condition: str
) -> None:
    result = mltune("repro-check", *short, "--vary", condition, cwd=tmp_path)
    assert result.code == 0, result.stdout + result.stderr


@pytest.mark.long
def test_more_threads_are_the_cause_wherever_they_decide_bits(
    mltune: Any, short: tuple[str, ...], tmp_path: Path
) -> None:
    """On Intel's processors with AMX they do, in the backward pass of the output layer."""
    result = mltune("repro-check", *short, "--vary", "threads=3", cwd=tmp_path)
    report = json.loads((tmp_path / "repro_output" / "report.json").read_text())
    if result.code == 0:
        assert report["compared_steps"] == 3
        return
    assert result.code == 1, result.stdout + result.stderr
    assert report["diagnosis"]["cause"] == "thread-count"
    assert report["localisation"]["operation"]


@pytest.mark.parametrize(
    ("condition", "code", "stage"),
    [
        pytest.param(
            "kill-and-resume",
            """
            if job.resume:
                from mltune_cli.training import loop
                take = loop.begin_step
                def faulty(state, *args, **kwargs):
                    next(iter(state.parameters.values())).data.view(-1)[0] += 1
                    return take(state, *args, **kwargs)
                loop.begin_step = faulty
            """,
            "loss", id="resume", marks=pytest.mark.long,
        ),
        pytest.param(
            "hash-seed",
            """
            import os
            if os.environ["PYTHONHASHSEED"] != "0":
                return job.model_copy(
                    update={"recipe": job.recipe.with_values({"reproducibility.seed": 21})}
                )
            """,
            "parameters", id="hash seed", marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_a_recipe_that_depends_on_a_condition_is_found(
    mltune: Any,
    planted: Callable[..., dict[str, str]],
    short: tuple[str, ...],
    tmp_path: Path,
    condition: str,
    code: str,
    stage: str,
) -> None:
    fault = planted(code, run="run-2")
    flags = ("--no-explain", *short)
    assert mltune("repro-check", *flags, cwd=tmp_path, env=fault).code == 0
    result = mltune("repro-check", "--vary", condition, *flags, cwd=tmp_path, env=fault)
    assert result.code == 1, result.stdout + result.stderr
    report = json.loads((tmp_path / "repro_output" / "report.json").read_text())
    assert report["first_difference"]["stage"] == stage


@pytest.mark.long
def test_another_environment_class_by_condition_is_a_difference(
    mltune: Any, short: tuple[str, ...], tmp_path: Path
) -> None:
    result = mltune(
        "repro-check", "--no-explain", "--vary", "instruction-set", *short, cwd=tmp_path
    )
    assert result.code == 1, result.stdout + result.stderr
