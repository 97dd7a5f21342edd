"""`mltune diff`: a tree of what differs, and an exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

MltuneRun = Callable[..., Any]


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A second run folder that may be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def test_a_copy_is_the_same(mltune: MltuneRun, finished_run: Path, copy: Path) -> None:
    result = mltune("diff", finished_run, copy, "--json", cwd=copy.parent)
    assert result.code == 0
    tree = json.loads(result.stdout)
    assert tree["verdict"] == "same"
    assert tree["nodes"] == []


def test_one_ulp_is_named_with_tensor_and_index(
    mltune: MltuneRun, finished_run: Path, copy: Path
) -> None:
    file = copy / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[10]
    tensors[name][2, 3] = np.nextafter(tensors[name][2, 3], np.float32(9))
    save_file(tensors, file)
    result = mltune("diff", finished_run, copy, cwd=copy.parent)
    assert result.code == 1
    assert f"{name}: 1 of {tensors[name].size} elements" in result.stdout
    assert "at most 1 ulp, first at [2, 3]" in result.stdout
    assert "tensors: 55 equal" in result.stdout


def test_another_learning_rate_parts_in_the_first_step(
    mltune: MltuneRun, finished_run: Path, short: tuple[str, ...], tmp_path: Path
) -> None:
    other = mltune(
        "train", *short, "--set", "train.learning_rate=4e-3", "--output-dir", "b", cwd=tmp_path
    )
    assert other.code == 0, other.stderr
    result = mltune("diff", finished_run, tmp_path / "b", "--json", cwd=tmp_path)
    assert result.code == 1
    nodes = {node["name"]: node for node in json.loads(result.stdout)["nodes"]}
    assert set(nodes) == {"recipe", "steps", "tensors"}
    (change,) = nodes["recipe"]["children"]
    assert (change["name"], change["a"], change["b"]) == ("train.learning_rate", "0.005", "0.004")
    first = nodes["steps"]["children"][0]
    assert first["name"] == "step 1"
    assert first["children"][0]["name"] == "hyperparameters"


def test_missing_steps_are_a_difference(mltune: MltuneRun, finished_run: Path, copy: Path) -> None:
    """A run that took fewer steps is whole, and is not the same."""
    witness = copy / "witness.jsonl"
    lines = witness.read_text().splitlines(keepends=True)[:-1]
    witness.write_text("".join(lines))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["result"] |= {"steps": 2, "trained_digest": json.loads(lines[-1])["parameters"]}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = mltune("diff", finished_run, copy, cwd=copy.parent)
    assert result.code == 1
    assert "steps 3 to 3 (only in a)" in result.stdout


def test_other_files_with_the_same_bits_are_shown_and_are_no_difference(
    mltune: MltuneRun, finished_run: Path, copy: Path
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["train_data"]["digest"] = "xxh3_128:0"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = mltune("diff", finished_run, copy, cwd=copy.parent)
    assert result.code == 0
    assert "train.digest" in result.stdout


def test_an_environment_that_changed_no_bit_is_shown_and_is_no_difference(
    mltune: MltuneRun, finished_run: Path, copy: Path
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["environment"]["packages"]["numpy"] = "0.0.0"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = mltune("diff", finished_run, copy, cwd=copy.parent)
    assert result.code == 0
    assert "packages.numpy" in result.stdout


@pytest.mark.parametrize(
    ("damage", "code", "sentence"),
    [
        ("unfinished", 125, "is not a whole run: its manifest says running"),
        ("nothing in it", 125, "witness.jsonl does not hold the steps 0 to 3"),
        ("no adapter", 125, "its trained tensors are missing"),
        ("another's adapter", 125, "tell of different trained parameters"),
        ("a check's output", 2, "holds the runs of a check; name one"),
        ("torn witness", 125, "witness.jsonl:4: is damaged"),
        ("cut adapter", 125, "adapter_model.safetensors: is not a whole safetensors file"),
        ("no manifest", 2, "is not a run: it holds no manifest.json"),
        ("manifest garbage", 2, "manifest.json: is damaged"),
        ("no folder", 2, "no such run folder"),
    ],
)
def test_trouble_has_its_own_codes(
    mltune: MltuneRun, finished_run: Path, copy: Path, damage: str, code: int, sentence: str
) -> None:
    manifest = copy / "manifest.json"
    witness = copy / "witness.jsonl"
    adapter = copy / "adapter" / "adapter_model.safetensors"
    match damage:
        case "unfinished":
            fields = json.loads(manifest.read_text())
            fields["result"] = {"status": "running", "steps": 0}
            manifest.write_text(json.dumps(fields))
        case "nothing in it":
            witness.write_text("")
        case "no adapter":
            shutil.rmtree(copy / "adapter")
        case "another's adapter":
            fields = json.loads(manifest.read_text())
            fields["result"]["trained_digest"] = "0" * 16
            manifest.write_text(json.dumps(fields))
        case "a check's output":
            (copy / "run-1").mkdir()
        case "torn witness":
            witness.write_text(witness.read_text()[:-30])
        case "cut adapter":
            adapter.write_bytes(adapter.read_bytes()[:-100])
        case "no manifest":
            manifest.unlink()
        case "manifest garbage":
            manifest.write_text('{"mltune": 3}')
        case "no folder":
            shutil.rmtree(copy)
    result = mltune("diff", finished_run, copy, cwd=copy.parent)
    assert result.code == code
    assert sentence in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
