"""Trainings in phases: each has a model and an optimizer of its own, and steps are counted on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import os, random, sys
import torch

rows = torch.arange(24.0).view(6, 4) / 24
path = os.path.join(sys.argv[1], "state")
state = torch.load(path) if os.path.exists(path) else {"phase": 0, "step": 0}
for phase in range(state["phase"], 2):
    torch.manual_seed(SEED if phase else 1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if "model" in state:
        print("resumed in phase", phase, "after", state["step"])
        model.load_state_dict(state["model"])
        OPTIMIZER
    for step in range(state["step"], 4):
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        optimizer.step()
        state = {"phase": phase, "step": step + 1, "model": model.state_dict(),
                 "optimizer": optimizer.state_dict()}
        torch.save(state, path + ".part")
        os.replace(path + ".part", path)
    state = {"step": 0}
"""
RESTORED = "optimizer.load_state_dict(state['optimizer'])"


def check(
    mltune: Any, folder: Path, *flags: str, seed: str = "2", optimizer: str = RESTORED
) -> tuple[int, dict[str, Any], str]:
    script = SCRIPT.replace("SEED", seed).replace("OPTIMIZER", optimizer)
    (folder / "train.py").write_text(script)
    result = mltune(
        "repro-check", *flags, "--", sys.executable, "train.py", "{run}", cwd=folder, timeout=300
    )
    report = json.loads((folder / "repro_output" / "report.json").read_text())
    return result.code, report, result.stdout + result.stderr


def test_a_second_model_that_is_not_seeded_is_found_at_its_first_step(
    mltune: Any, tmp_path: Path
) -> None:
    """Experiments that ended before its start would all agree, and the first would be blamed."""
    code, report, output = check(mltune, tmp_path, seed="random.getrandbits(32)")
    assert code == 1, output
    difference, where = report["first_difference"], report["localisation"]
    assert (difference["step"], difference["stage"]) == (5, "parameters")
    assert (difference["optimizer"], difference["is_start"]) == ("Adam 2", True)
    assert "did not start from the same values" in output
    assert where["step"] == 5
    assert report["diagnosis"]["cause"] == "unseeded-initialisation", report["diagnosis"]
    assert report["tensors"] == ["0.0 weight", "0.1 bias"]


@pytest.mark.parametrize("step", [2, 6])
def test_a_phase_that_is_resumed_well_is_reproducible(
    mltune: Any, tmp_path: Path, step: int
) -> None:
    code, report, output = check(mltune, tmp_path, "--vary", f"kill-and-resume={step}")
    assert "resumed in phase" in output
    assert (code, report["compared_steps"]) == (0, 8), output


def test_a_second_phase_that_forgets_its_optimizer_is_found(mltune: Any, tmp_path: Path) -> None:
    code, report, output = check(
        mltune, tmp_path, "--no-explain", "--vary", "kill-and-resume=7", optimizer="pass"
    )
    assert code == 1, output
    difference = report["first_difference"]
    assert (difference["stage"], difference["optimizer"]) == ("optimizer", "Adam 2")
    assert difference["step"] in (6, 7, 8)
