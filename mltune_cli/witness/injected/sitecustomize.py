"""Start-up hook: watches the training of any Python process whose environment names a folder.

This file stands alone in its folder, which `mltune repro-check -- COMMAND` puts on PYTHONPATH.
Python imports it in every process that inherits the environment, workers of a launcher included.
It costs nothing until torch's optimizers are imported, and nothing it does may stop the script.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType

_FOLDER = "MLTUNE_WITNESS_FOLDER"
_TRIGGER = "torch.optim.optimizer"
_MODULES = ("record", "digest", "observer")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the import of one module go its usual way, and calls back when it is done."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_prepare(module: ModuleType) -> None:
            execute(module)
            _watch_when_torch_is_whole()

        spec.loader.exec_module = execute_and_prepare  # type: ignore[method-assign]
        return spec


def _watch_when_torch_is_whole() -> None:
    """Install the observer at the first use of an optimizer: torch itself is still importing."""
    optimizer = sys.modules[_TRIGGER].Optimizer
    initialise = optimizer.__init__

    def initialise_and_watch(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        optimizer.__init__ = initialise
        _watch()
        initialise(self, *args, **kwargs)

    optimizer.__init__ = initialise_and_watch


def _watch() -> None:
    folder = os.environ[_FOLDER]
    try:
        observer_module = _load_witness()
        from pathlib import Path

        observer_module.Observer(Path(folder)).install()
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
    """Leave the reason where repro-check looks for it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "trouble.txt"), "a", encoding="utf-8") as stream:
            stream.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
    except OSError:
        pass


def _run_users_own() -> None:
    """Run the sitecustomize that this one stands in front of, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in sys.path if os.path.abspath(path or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get(_FOLDER):
    sys.meta_path.insert(0, _AfterImport())
_run_users_own()
