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


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.long), 6])
def test_a_phase_that_is_resumed_well_is_reproducible(
    mltune: Any, tmp_path: Path, step: int
) -> None:
    code, report, output = check(mltune, tmp_path, "--vary", f"kill-and-resume={step}")
    assert "resumed in phase" in output
    assert (code, report["compared_steps"]) == (0, 8), output


ALTERNATING = """
import os, sys
import torch

torch.manual_seed(0)
path = os.path.join(sys.argv[1], "state")
encoder = torch.nn.Linear(4, 4)
heads = [torch.nn.Linear(4, 1) for _ in range(2)]
models = torch.nn.ModuleList([encoder, *heads])
optimizers = [torch.optim.SGD([*encoder.parameters(), *h.parameters()], lr=0.1) for h in heads]
rows, first = torch.randn(8, 8, 4), 0
if os.path.exists(path):
    state = torch.load(path)
    first = state["step"]
    models.load_state_dict(state["models"])
    print("resumed after", first)
    DAMAGE
for step in range(first, 8):
    number = step % 2
    optimizers[number].zero_grad()
    heads[number](encoder(rows[step])).square().mean().backward()
    optimizers[number].step()
    with torch.no_grad():
        encoder.weight.clamp_(-0.2, 0.2)
    torch.save({"step": step + 1, "models": models.state_dict()}, path + ".part")
    os.replace(path + ".part", path)
"""


@pytest.mark.parametrize("damage", ["pass", "encoder.bias.data += 1e-3"])
def test_weights_that_something_else_changes_too_are_resumed(
    mltune: Any, tmp_path: Path, damage: str
) -> None:
    """No step of an optimizer has its parameters as they are when it begins again."""
    (tmp_path / "train.py").write_text(ALTERNATING.replace("DAMAGE", damage))
    command = (sys.executable, "train.py", "{run}")
    result = mltune(
        "repro-check", "--no-explain", "--vary", "kill-and-resume=5", "--", *command, cwd=tmp_path
    )
    output = result.stdout + result.stderr
    assert "resumed after" in output
    assert result.code == (0 if damage == "pass" else 1), output
    assert ("resume" in output.partition("part\n")[2]) == (damage != "pass"), output


OF_OTHER_LENGTH = """
import pathlib
import torch
number = pathlib.Path("number")
count = int(number.read_text()) if number.exists() else 0
number.write_text(str(count + 1))
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2 + LENGTH):
    optimizer.zero_grad()
    model(torch.ones(4, 4)).square().mean().backward()
    optimizer.step()
"""


@pytest.mark.parametrize("length", ["count % 2", pytest.param("count", marks=pytest.mark.long)])
def test_runs_of_other_lengths_are_compared_to_their_ends(
    mltune: Any, tmp_path: Path, length: str
) -> None:
    """Pairs that end where the shorter run ended agree, and look as if nothing was wrong."""
    (tmp_path / "train.py").write_text(OF_OTHER_LENGTH.replace("LENGTH", length))
    result = mltune("repro-check", "--json", "--", sys.executable, "train.py", cwd=tmp_path)
    assert result.code == 1, result.stderr
    report = json.loads(result.stdout)
    assert report["first_difference"]["stage"] == "missing"
    assert report["diagnosis"]["cause"] == "unknown", report["diagnosis"]
    assert not any("agree" in said for said in report["diagnosis"]["evidence"])


def test_a_second_phase_that_forgets_its_optimizer_is_found(mltune: Any, tmp_path: Path) -> None:
    code, report, output = check(
        mltune, tmp_path, "--no-explain", "--vary", "kill-and-resume=7", optimizer="pass"
    )
    assert code == 1, output
    difference = report["first_difference"]
    assert (difference["stage"], difference["optimizer"]) == ("optimizer", "Adam 2")
    assert difference["step"] in (6, 7, 8)
