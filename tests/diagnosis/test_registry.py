"""The list of checks: whole, in order, chosen by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mltune_cli.diagnosis.checks
from mltune_cli.diagnosis.registry import CHECKS, chosen_checks
from mltune_cli.errors import UsageError

FOLDER = Path(mltune_cli.diagnosis.checks.__file__).parent
TESTS = Path(__file__).parent


def test_every_module_of_the_folder_is_a_check() -> None:
    """A rule that is written and not registered would never run."""
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert len(CHECKS) >= 30
    assert {check.name.replace("-", "_") for check in CHECKS} == modules
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_every_check_is_provoked_by_a_test() -> None:
    """Each name stands in a call that looks for its fault."""
    named = {
        node.value
        for path in TESTS.glob("test_*_checks.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    missing = [check.name for check in CHECKS if check.name not in named]
    assert missing == []


def test_checks_are_chosen_by_name_in_their_own_order() -> None:
    assert chosen_checks([]) == CHECKS
    assert [c.name for c in chosen_checks(["git", "python", "git"])] == ["python", "git"]
    assert [c.name for c in chosen_checks(["hash_seed", "TF32"])] == ["hash-seed", "tf32"]


def test_a_name_that_is_none_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        chosen_checks(["hashseed"])
    assert "--only hashseed: no such check; did you mean hash-seed? there are python" in str(
        caught.value
    )
    with pytest.raises(UsageError, match="no such check; there are"):
        chosen_checks(["zzzz"])
