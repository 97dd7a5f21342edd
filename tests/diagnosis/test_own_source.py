"""Where mltune comes from: its name on the public index is somebody else's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.diagnosis import packages
from mltune_cli.diagnosis.checks import python as python_check
from mltune_cli.diagnosis.checks.python import PythonFacts

OWN = "mltune runs from a folder and is not installed"


def test_no_remedy_installs_the_bare_name(clinic: Any, package: Any, project: Path) -> None:
    """On the public index it is somebody else's: a source is named, or nothing is."""
    bare = re.compile(r"install(?: -\S+)* '?mltune\b")
    asks = package("plugin", "1.0", ["mltune>=99", "transformers>=1"])
    (asked,) = clinic.look("combinations", env=asks).findings()
    assert "plugin 1.0 asks for mltune>=99" in asked["seen"]
    assert asked["command"] is None
    shutil.copytree(project / "mltune_cli", clinic.root / "checkout" / "mltune_cli")
    shutil.copytree(project / "templates", clinic.root / "checkout" / "templates")
    shutil.copytree(project / "repro_dataset", clinic.root / "checkout" / "repro_dataset")
    for has_source in (False, True):
        if has_source:
            (clinic.root / "checkout" / "pyproject.toml").touch()
        env = {"PYTHONPATH": f"{clinic.root}/checkout", "CLINIC_HIDES": "mltune"}
        told = subprocess.run(
            [sys.executable, "-P", "-c", HIDDEN], cwd=clinic.folder,
            env=clinic.environment(env), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        (finding,) = json.loads(told.stdout)["checks"][0]["findings"]
        assert finding["seen"] == OWN
        assert "a checkout, a wheel, or an address of git" in finding["remedy"]
        assert (finding["command"] or "").endswith(f"install {clinic.root}/checkout") is has_source
        assert not bare.search(finding["command"] or "")


# mltune as one that nobody installed.
HIDDEN = """
import sys
from mltune_cli.diagnosis import packages
read = packages._read_packages
packages._read_packages = lambda: {n: p for n, p in read().items() if n != "mltune"}
packages.metadata.distribution = lambda name: (_ for _ in ()).throw(
    packages.metadata.PackageNotFoundError(name)
)
from mltune_cli.cli import main
sys.argv = ["mltune", "doctor", "--json", "--only", "requirements"]
main()
"""


@pytest.mark.parametrize(
    ("told", "source"),
    [
        ('{"url": "file://{there}", "dir_info": {}}', "{there}"),
        ('{"url": "file://{there}/gone.whl", "archive_info": {}}', None),
        (
            '{"url": "https://a.example/b", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}',
            "git+https://a.example/b@c0ffee",
        ),
        (
            '{"url": "https://x.example/mltune.whl", "archive_info": {}}',
            "https://x.example/mltune.whl",
        ),
        ("{}", None),
        ("[]", None),
        ("no json", None),
        (None, None),
    ],
)
def test_where_mltune_was_installed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, source: str | None
) -> None:
    there = tmp_path / "a folder"
    there.mkdir()
    text = told and told.replace("{there}", str(there).replace(" ", "%20"))

    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return text

    monkeypatch.setattr(packages.metadata, "distribution", lambda name: Installed())
    monkeypatch.setattr(packages.mltune_cli, "__file__", str(tmp_path / "site" / "a" / "b.py"))
    assert packages.own_source() == (source and source.replace("{there}", str(there)))


def test_a_python_that_is_too_old_names_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    for source, end in (("/src/mltune", "install /src/mltune"), (None, "-m venv .venv")):
        monkeypatch.setattr(python_check, "own_source", lambda source=source: source)
        (finding,) = python_check.judge(PythonFacts((3, 10), "CPython", "Linux", "x86_64", True))
        assert finding.command is not None
        assert finding.command.endswith(end)
        assert "install mltune there from its source" in (finding.remedy or "")
