"""Start-up hook: watches the training of any Python process whose environment names a folder.

This file stands alone in its folder, which `mltune repro-check -- COMMAND` puts on PYTHONPATH.
Python imports it in every process that inherits the environment, workers of a launcher included.
It costs nothing until torch is imported, and nothing it does may stop the script.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType

_FOLDER = "MLTUNE_WITNESS_FOLDER"
_TRACE = "MLTUNE_TRACE"
_CONDITIONS = "MLTUNE_CONDITIONS"
_TRIGGER = "torch"
# In the order in which they need each other.
_MODULES = (
    "record", "digest", "stages", "naming", "seeding", "trace_record", "memory", "call_sites",
    "random_calls", "calls", "trace", "hardware", "surroundings", "guard", "open_step",
    "observer",
)  # fmt: skip


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the import of one module go its usual way, and calls back when it is done."""

    def __init__(self, name: str, callback: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._callback = callback
        self._is_looking = False

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != self._name or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_looking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_prepare(module: ModuleType) -> None:
            # Not before: many only ask whether there is such a module, and import it later.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            execute(module)
            self._callback(module)

        spec.loader.exec_module = execute_and_prepare  # type: ignore[method-assign]
        return spec


def _watch() -> None:
    """Install the observer, as soon as torch is whole."""
    folder = os.environ[_FOLDER]
    try:
        observer_module = _load_witness()
        from pathlib import Path

        request = os.environ.get(_TRACE)
        observer_module.Observer(
            Path(folder),
            per_tensor=request is not None,
            trace=observer_module.TraceRequest.from_json(request) if request else None,
            on_fault=lambda error: _say(folder, error),
        ).install()
    except Exception as error:
        _say(folder, error)


def _load_witness() -> ModuleType:
    """Load the witness by path under its own name, and take that name out of the way again.

    The script's environment may have no mltune, or another one.
    """
    witness = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    names = ["mltune_cli", "mltune_cli.witness", *("mltune_cli.witness." + m for m in _MODULES)]
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        for name in names[:2]:
            sys.modules[name] = ModuleType(name)
        for short in _MODULES:
            name = "mltune_cli.witness." + short
            loader = importlib.machinery.SourceFileLoader(
                name, os.path.join(witness, short + ".py")
            )
            module = ModuleType(name)
            module.__file__ = loader.path
            sys.modules[name] = module
            loader.exec_module(module)
        return module
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def _say(folder: str, error: Exception) -> None:
    """Leave the reason where repro-check looks for it; where it cannot be left, end the process.

    An empty file says enough. Without any, half a training would be taken for a whole one.
    """
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}\n"
    path = os.path.join(folder, "trouble.txt")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(reason)
    except OSError:
        if os.path.exists(path):
            return
        said = f"mltune: this process is not watched any more, and {path} cannot say so: {reason}"
        os.write(2, said.encode(errors="replace"))
        os._exit(1)


def _make_conditions() -> dict[str, list[Callable[[ModuleType], None]]]:
    """Make the conditions that the environment asks for; return what is left for after imports."""
    text = os.environ.get(_CONDITIONS)
    if not text:
        return {}
    witness = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    name = "mltune_cli.witness.conditions"
    loader = importlib.machinery.SourceFileLoader(name, os.path.join(witness, "conditions.py"))
    module = ModuleType(name)

    later: dict[str, list[Callable[[ModuleType], None]]] = {}

    def make() -> None:
        nonlocal later
        loader.exec_module(module)
        later = module.install(text)

    _or_end(make)
    return later


def _or_end(make: Callable[[], None]) -> None:
    """Make a condition; without it the process must not go on, as if it had it."""
    try:
        make()
    except Exception as error:
        said = f"mltune: a condition cannot be made: {type(error).__name__}: {error}\n"
        os.write(2, said.encode(errors="replace"))
        os._exit(1)


def _after_import(name: str, later: dict[str, list[Callable[[ModuleType], None]]]) -> None:
    """See to it that conditions, and the witness, are made when a module has been imported."""

    def make(module: ModuleType) -> None:
        for call in later.get(name, ()):
            _or_end(lambda call=call: call(module))  # type: ignore[misc]
        if name == _TRIGGER:
            if os.environ.get(_FOLDER):
                _watch()
            for call in later.get("witness", ()):
                _or_end(lambda call=call: call(module))  # type: ignore[misc]

    sys.meta_path.insert(0, _AfterImport(name, make))


def _run_users_own() -> None:
    """Run the sitecustomize that this one stands in front of, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in sys.path if os.path.abspath(path or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_later = _make_conditions()
if os.environ.get(_FOLDER) or "torch" in _later or "witness" in _later:
    _after_import(_TRIGGER, _later)
if "numpy" in _later:
    _after_import("numpy", _later)
_run_users_own()
