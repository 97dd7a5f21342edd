"""A token on a checked command's line reaches the command, and nothing that is written of it."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

TOKEN, OTHER = "s3cr3t-Token-Value", "0ther-S3cret-Value"
SHAPED = "hf_" + "QwErTyUi" * 4
SCRIPT = """
import sys
import torch
print("called with", sys.argv)
assert sys.argv[2].removeprefix("--hf_token=") in {secrets}, sys.argv
torch.manual_seed(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=float(sys.argv[1]))
for step in range({steps}):
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
if {fails}:
    sys.exit("unrecognized arguments: " + " ".join(sys.argv[1:]))
"""


@pytest.fixture
def check(mltune: Any, tmp_path: Path) -> Any:
    """Check the script with a token: `check("--record", "g.json", token=..., fails=True)`."""

    def run(*flags: str, token: str = TOKEN, rate: str = "0.1", fails: bool = False) -> Any:
        script = SCRIPT.format(secrets=(TOKEN, OTHER), steps=3, fails=fails)
        (tmp_path / "t.py").write_text(script)
        return mltune(
            "repro-check", "--no-explain", *flags,
            "--", sys.executable, str(tmp_path / "t.py"), rate, f"--hf_token={token}",
            "--key", SHAPED, cwd=tmp_path,
            env={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md"),
                 "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return run


def told(result: Any, folder: Path) -> str:
    """Everything that was printed, and every file that was written but the script."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "t.py"]
    assert {"report.json", "report.xml", "page.md"} <= {path.name for path in files}
    texts = [path.read_bytes().decode(errors="replace") for path in files]
    return "\n".join([result.stdout, result.stderr, *texts])


def assert_hidden(result: Any, folder: Path) -> None:
    everything = told(result, folder)
    for secret in (TOKEN, OTHER, SHAPED):
        assert secret not in everything
    assert "--hf_token=***" in everything


def test_no_token_is_written_anywhere(check: Any, tmp_path: Path) -> None:
    recorded = check("--record", "g.json", "--junit", "j.xml")
    assert recorded.code == 0, recorded.stdout + recorded.stderr
    assert_hidden(recorded, tmp_path)
    golden = json.loads((tmp_path / "g.json").read_text())
    assert golden["entries"][0]["subject"] == (
        f"{Path(sys.executable).name} t.py 0.1 '--hf_token=***' --key '***'"
    )
    # It names no folder of this machine either.
    assert str(tmp_path) not in (tmp_path / "g.json").read_text()
    # Another token is no other training; another argument is, and is told.
    same = check("--against", "g.json", "--json", token=OTHER)
    assert same.code == 0, same.stdout + same.stderr
    assert json.loads(same.stdout)["golden"]["verdict"] == "reproduced"
    changed = check("--against", "g.json", "--json", token=OTHER, rate="0.2")
    assert changed.code == 1
    assert_hidden(changed, tmp_path)
    found = json.loads(changed.stdout)["golden"]
    (change,) = found["changes"]
    assert change["was"].replace("t.py 0.1 ", "t.py 0.2 ") == change["now"]
    assert found["record_command"].endswith("'--hf_token=***' --key '***'")


def test_what_a_failing_command_says_of_its_token_is_hidden(check: Any, tmp_path: Path) -> None:
    failed = check(fails=True)
    assert failed.code == 125
    assert "unrecognized arguments: 0.1 --hf_token=***" in failed.stdout
    assert_hidden(failed, tmp_path)


def test_a_token_that_is_varied_is_hidden(check: Any, tmp_path: Path) -> None:
    varied = check("--vary", f"argument=--hf_token={OTHER}", "--vary", f"env.API_KEY={OTHER}")
    assert varied.code == 0, varied.stdout + varied.stderr
    assert_hidden(varied, tmp_path)
    assert "run 2 had: argument=--hf_token=***, env.API_KEY=***" in varied.stdout
    wrong = check("--vary", f"argument=--hf_token='{OTHER}")
    assert wrong.code == 2
    assert OTHER not in wrong.stderr


def test_a_command_whose_secret_was_not_kept_is_not_run_again(
    check: Any, mltune: Any, tmp_path: Path
) -> None:
    assert check().code == 0
    (tmp_path / "repro_output").rename(tmp_path / "earlier")
    refused = mltune("repro-check", "--against", "earlier", cwd=tmp_path)
    assert refused.code == 2
    assert "its command had a secret, which is not kept; give the command after --" in (
        refused.stderr
    )
    again = check("--against", "earlier", token=OTHER)
    assert again.code == 0, again.stdout + again.stderr


def test_a_command_in_an_image_is_shown_without_its_token(mltune: Any, tmp_path: Path) -> None:
    words = ("mltune", "train", "--set", f"x.api_key={TOKEN}", SHAPED)
    planned = mltune("build-image", "--dry-run", "--", *words, cwd=tmp_path)
    assert planned.code == 0, planned.stderr
    assert f"# then runs: {shlex.join(words[:3])} x.api_key=*** ***\n" in planned.stdout
    assert TOKEN not in planned.stdout + planned.stderr
