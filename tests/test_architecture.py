"""The rooms, over the syntax tree: who may import whom, who prints, and what nobody does."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mltune_cli"

# From the bottom to the top. A module may import its own room and those below. Rooms that stand in
# one tuple are side by side; the modules of `launching` are, too.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__init__", "command_secrets", "errors", "digests", "randomness", "paths"),
    ("bundled", "recipe"),
    ("manifest", "model_shape"),
    ("memory_estimate",),
    ("run_folder", "launching", "witness"),
    ("training",),
    ("reproduction",),
    ("imaging", "exporting"),
    ("diagnosis", "scaffolding"),
    ("rendering",),
    ("commands",),
    ("cli", "__main__"),
)
HEAVY = {"torch", "transformers", "peft", "datasets", "pyarrow", "docker", "pandas"}
# Room or module to those of the heavy packages that it may import at all, lazily or not.
MAY_IMPORT = {
    "training": {"torch", "transformers", "peft", "datasets", "pyarrow"},
    "witness": {"torch"},
    "witness.hf": {"transformers"},
    "imaging": {"docker"},
    # A process of its own, which runs PyTorch's elastic agent; the command never imports it.
    "launching.elastic": {"torch"},
    # A process of its own, too.
    "diagnosis.torch_probe": {"torch"},
}
# What a room must not import although it stands above it.
CLOSED = {"reproduction": {"training"}, "commands": {"training"}, "rendering": {"training"},
          "imaging": {"training"}, "diagnosis": {"training"}, "exporting": {"training"},
          "cli": {"training"}, "scaffolding": {"training"}}  # fmt: skip
# A process of its own that may: nothing imports it, and it reads rows as training does.
REACHING = {"diagnosis.row_probe": {"training"}}
PROBES = ("diagnosis.driver_probe", "diagnosis.row_probe", "diagnosis.torch_probe")
FORBIDDEN_NAMES = ("util", "helper", "manager", "misc", "common")


@dataclass(frozen=True)
class Module:
    """One parsed module; `name` without the package's, such as `training.data.packing`."""

    name: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first part of the name: a package, or a module at the top."""
        return self.name.partition(".")[0]


def modules_of(package: Path) -> list[Module]:
    modules = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] == "_bundled":
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        modules.append(Module(name, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return modules


def imports_of(module: Module) -> Iterator[tuple[int, str]]:
    """Every imported module with its line, wherever the import stands but for type checkers."""
    skipped = {
        id(child)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(module.tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "."
            if node.module == "mltune_cli" or (node.module or "").startswith("mltune_cli."):
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def level_of(room: str) -> int:
    for level, rooms in enumerate(LAYERS):
        if room in rooms:
            return level
    raise AssertionError(f"{room}: a new room; give it a place in LAYERS")


def import_faults(module: Module, rooms: set[str]) -> Iterator[str]:
    for line, name in imports_of(module):
        where = f"{module.name}:{line}: imports {name}"
        root, _, rest = name.partition(".")
        if root in ("", "."):
            yield f"{where}: relative imports do not show where they point"
        if root in ("click", "_click") or name.startswith("typer._click"):
            yield f"{where}: Typer brings its own click, whose place is not public"
        if root in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
            yield f"{where}: reading a pickle runs what it says"
        if root == "rich" and module.room != "rendering":
            yield f"{where}: only rendering prints"
        allowed = MAY_IMPORT.get(module.name) or MAY_IMPORT.get(module.room, set())
        if root in HEAVY and root not in allowed:
            yield f"{where}: {root} belongs to other rooms"
        if (
            module.room == "witness"
            and root not in sys.stdlib_module_names
            and root not in ("torch", "mltune_cli")
            and module.name != "witness.hf"  # the callback; nothing else imports it
        ):
            yield f"{where}: the witness needs torch and the standard library alone"
        if root != "mltune_cli" or not rest:
            continue
        target = rest.partition(".")[0]
        if target not in rooms:
            continue  # a name of the package itself, such as __version__
        if module.room == "witness" and target != "witness":
            yield f"{where}: the witness is usable alone"
        if any(rest == name or rest.startswith(f"{name}.") for name in PROBES):
            yield f"{where}: a process of its own is started, not imported"
        if target in CLOSED.get(module.room, set()) - REACHING.get(module.name, set()):
            yield f"{where}: {module.room} reaches training through a process alone"
        same_level = level_of(target) == level_of(module.room) and target != module.room
        if level_of(target) > level_of(module.room) or (same_level and target not in BASEMENT):
            yield f"{where}: imports point downward only"


# The rooms of the lowest layers may use those beside them; it is one floor.
BASEMENT = {
    "__init__", "errors", "digests", "randomness", "paths", "bundled", "recipe", "cli",
}  # fmt: skip


def call_faults(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{module.name}:{node.lineno}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        prints = called in ("print", "pprint", "pprint.pprint") or called.startswith(
            ("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer", "sys.__stdout__")
        )
        if prints and module.room != "rendering":
            yield f"{where}: {called}: only rendering prints"
        if called in ("typer.echo", "typer.secho") and module.room != "cli":
            yield f"{where}: {called}: only rendering prints"
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield f"{where}: torch.load without weights_only=True runs what a file says"
        if called in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
            yield f"{where}: numpy.load with pickles runs what a file says"
        if called in ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all") or (
            called == "yaml.load" and keywords.get("Loader") not in SAFE_LOADERS
        ):
            yield f"{where}: {called}: this loader makes any object that a file names"
        if called in ("eval", "exec", "os.system") or keywords.get("shell") == "True":
            yield f"{where}: {called}: runs text"


SAFE_LOADERS = ("_RecipeLoader", "yaml.SafeLoader", "yaml.CSafeLoader")


def faults_of(package: Path) -> list[str]:
    modules = modules_of(package)
    rooms = {module.room for module in modules}
    faults = [
        f"{module.name}: say what is in it"
        for module in modules
        if any(word in part for part in module.name.split(".") for word in FORBIDDEN_NAMES)
    ]
    for module in modules:
        level_of(module.room)
        faults += import_faults(module, rooms)
        faults += call_faults(module)
    return faults


def test_every_module_is_seen() -> None:
    """A listing that is not recursive would see a few, and find them all in order."""
    names = {module.name for module in modules_of(PACKAGE)}
    assert len(names) >= 40
    assert {"cli", "training.data.packing", "recipe.layers", "witness.digest"} <= names


def test_the_rooms_keep_to_their_rules() -> None:
    assert faults_of(PACKAGE) == []


def test_the_recipe_loader_is_a_safe_one() -> None:
    """The one loader of our own that the rule lets through makes plain values alone."""
    import yaml

    from mltune_cli.recipe import yaml_lines

    loader = yaml_lines._RecipeLoader
    assert issubclass(loader, yaml.SafeLoader)
    assert loader.yaml_constructors == yaml.SafeLoader.yaml_constructors
    assert loader.yaml_multi_constructors == yaml.SafeLoader.yaml_multi_constructors


@pytest.mark.parametrize(
    ("place", "line", "complaint"),
    [
        ("errors.py", "import mltune_cli.manifest", "downward"),
        ("bundled.py", "from mltune_cli import cli", "downward"),
        ("manifest.py", "from mltune_cli.training.loop import train", "downward"),
        ("launching/events.py", "from mltune_cli.run_folder import ADAPTER", "downward"),
        ("run_folder.py", "from mltune_cli.reproduction import report", "downward"),
        ("reproduction/report.py", "from mltune_cli.rendering.console import stdout", "downward"),
        ("rendering/console.py", "def f():\n    import mltune_cli.commands.train", "downward"),
        ("reproduction/report.py", "def f():\n    import torch", "torch belongs"),
        ("recipe/layers.py", "def f():\n    import transformers", "transformers belongs"),
        ("rendering/diff.py", "import pyarrow.parquet", "pyarrow belongs"),
        ("commands/train.py", "from mltune_cli.training import loop", "through a process"),
        ("reproduction/run_diff.py", "def f():\n    import mltune_cli.training.model", "process"),
        ("diagnosis/runner.py", "from mltune_cli.training.data import sources", "a process alone"),
        ("diagnosis/torch_probe.py", "import mltune_cli.training.model", "through a process"),
        ("diagnosis/torch_facts.py", "def f():\n    import torch", "torch belongs"),
        ("diagnosis/checks/data.py", "from mltune_cli.diagnosis import row_probe", "not imported"),
        ("imaging/gpu.py", "from mltune_cli.diagnosis import finding", "downward"),
        ("exporting/model_card.py", "from mltune_cli.training import merging", "through a process"),
        ("exporting/hub_upload.py", "def f():\n    import torch", "torch belongs"),
        ("witness/digest.py", "import numpy", "standard library alone"),
        ("witness/digest.py", "from mltune_cli.errors import ExitCode", "usable alone"),
        ("witness/record.py", "import transformers", "transformers belongs"),
        ("training/loop.py", "import importlib\nimportlib.import_module('docker')", "docker"),
        ("training/loop.py", "print(1)", "only rendering prints"),
        ("commands/train.py", "import sys\nsys.stdout.write('a')", "only rendering prints"),
        ("commands/train.py", "from rich import print as p", "only rendering prints"),
        ("commands/train.py", "import typer\ntyper.echo('a')", "only rendering prints"),
        ("cli.py", "import click", "click"),
        ("cli.py", "from typer._click import Context", "click"),
        ("training/model.py", "import pickle", "pickle"),
        ("training/model.py", "torch.load('a')", "weights_only"),
        ("training/model.py", "torch.load('a', weights_only=False)", "weights_only"),
        ("recipe/yaml_lines.py", "yaml.load('a', Loader=yaml.Loader)", "loader"),
        ("recipe/yaml_lines.py", "yaml.unsafe_load('a')", "loader"),
        ("training/model.py", "import subprocess\nsubprocess.run('a', shell=True)", "runs text"),
        ("training/loop.py", "from . import model", "relative"),
        ("commands/utils.py", "A = 1", "say what is in it"),
        ("training/data/row_helpers.py", "A = 1", "say what is in it"),
    ],
)
def test_a_planted_fault_is_caught(tmp_path: Path, place: str, line: str, complaint: str) -> None:
    """Each rule, broken in a copy of the package, is what the check complains of."""
    copy = tmp_path / "mltune_cli"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "tiny_model"))
    path = copy / place
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{old}\n{line}\n", encoding="utf-8")
    faults = faults_of(copy)
    assert faults
    name = place.removesuffix(".py").replace("/", ".")
    assert any(fault.startswith(name) and complaint in fault for fault in faults), faults


def test_a_new_room_needs_a_place(tmp_path: Path) -> None:
    copy = tmp_path / "mltune_cli"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "tiny_model"))
    (copy / "attic.py").write_text("A = 1\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="attic: a new room"):
        faults_of(copy)
