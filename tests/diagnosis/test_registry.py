"""The list of checks: whole, in order, chosen by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
    """Each name is the first argument of a call that looks for its fault."""
    named = {
        name
        for path in TESTS.glob("test_*_checks.py")
        for name in looked_for(ast.parse(path.read_text(encoding="utf-8")))
    }
    missing = [check.name for check in CHECKS if check.name not in named]
    assert missing == []


def looked_for(tree: ast.Module) -> Iterator[str]:
    """The first arguments of `clinic.look`, those that a test is parametrised with included."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "clinic.look":
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value)
            elif isinstance(first, ast.Name):
                yield from parameters(tree, function, first.id)


def parameters(tree: ast.Module, function: ast.FunctionDef, name: str) -> Iterator[str]:
    """What a test gets for an argument by `pytest.mark.parametrize`."""
    lists = {
        ast.unparse(node.targets[0]): node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or not ast.unparse(decorator).startswith("pytest"):
            continue
        names, rows = decorator.args
        listed = [names] if isinstance(names, ast.Constant) else getattr(names, "elts", [])
        order = [str(one.value) for one in listed if isinstance(one, ast.Constant)]
        if name in order:
            rows = lists.get(ast.unparse(rows), rows)
            for row in getattr(rows, "elts", []):
                yield str(getattr(row.elts[order.index(name)], "value", ""))


def test_what_is_only_named_is_not_provoked() -> None:
    source = """
ROWS = [("a-check", 1), ("b-check", 2)]

@pytest.mark.parametrize(("check", "n"), ROWS)
def test_a(clinic, check, n):
    clinic.look(check)

@pytest.mark.parametrize(("check", "n"), [("c-check", 1)])
def test_b(clinic, check, n):
    clinic.run("d-check", check)
    clinic.look("e-check", "f-check")
"""
    assert sorted(looked_for(ast.parse(source))) == ["a-check", "b-check", "e-check"]


def test_checks_are_chosen_by_name_in_their_own_order() -> None:
    assert chosen_checks([]) == CHECKS
    assert [c.name for c in chosen_checks(["git", "python", "git"])] == ["python", "git"]
    assert [c.name for c in chosen_checks(["hash_seed", "TF32"])] == ["hash-seed", "tf32"]
    assert [c.name for c in chosen_checks(["clock,git", " tf32, "])] == ["tf32", "git", "clock"]


def test_a_name_that_is_none_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        chosen_checks(["hashseed"])
    assert "--only hashseed: no such check; did you mean hash-seed? there are python" in str(
        caught.value
    )
    for nothing in ("", ","):
        with pytest.raises(UsageError, match="names no check; there are"):
            chosen_checks([nothing])
    with pytest.raises(UsageError, match="--only zzz: no such check"):
        chosen_checks(["git,zzz"])
    with pytest.raises(UsageError, match="no such check; there are"):
        chosen_checks(["zzzz"])
