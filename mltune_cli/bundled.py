"""What travels in the wheel: the tiny model, the smoke data set, the templates, the locks."""

from collections.abc import Iterator
from pathlib import Path

from mltune_cli.errors import NoVerdictError, UsageError

BUNDLED_PREFIX = "mltune/"
TINY_MODEL = "mltune/tiny"
DATASET_PREFIX = "mltune/repro_dataset/"

_PACKAGE = Path(__file__).parent
_BUNDLED = _PACKAGE / "_bundled"
_FOLDERS = ("repro_dataset", "templates")
_LOCKS = ("requirements-gpu.txt", "requirements.txt")


def _bundled_folder(name: str) -> Path:
    """Return a top-level folder of the project, from the wheel or from a checkout."""
    for folder in (_BUNDLED / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise NoVerdictError(f"this installation lacks its folder {name}; install mltune again")


def bundled_recipe(name: str) -> Path:
    """Return the file of a bundled recipe, e.g. `smoke`."""
    return _bundled_folder("templates") / "recipes" / f"{name}.yaml"


def bundled_model(name: str) -> Path:
    """Return the folder of a bundled model.

    Raises:
        UsageError: there is none of that name.
    """
    if name != TINY_MODEL:
        raise UsageError(f"{name}: no such bundled model; there is {TINY_MODEL}")
    return _PACKAGE / "tiny_model"


def bundled_data(name: str) -> Path:
    """Return a file of the bundled data set, e.g. `mltune/repro_dataset/train.jsonl`.

    Raises:
        UsageError: there is none of that name.
    """
    folder = _bundled_folder("repro_dataset")
    files = {DATASET_PREFIX + path.name: path for path in sorted(folder.glob("*.jsonl"))}
    if name not in files:
        raise UsageError(f"{name}: no such bundled data; there is {', '.join(files)}")
    return files[name]


def bundled_template(name: str) -> Path:
    """Return the file of a bundled template, e.g. `Dockerfile.j2`."""
    return _bundled_folder("templates") / name


def bundled_lock(name: str) -> Path:
    """Return a bundled lock, `requirements.txt` or `requirements-gpu.txt`.

    Raises:
        NoVerdictError: this installation lacks it.
    """
    for path in (_BUNDLED / "locks" / name, _PACKAGE.parent / name):
        if path.is_file():
            return path
    raise NoVerdictError(f"this installation lacks its lock {name}; install mltune again")


def packaged_files() -> Iterator[tuple[str, Path]]:
    """Yield every file that mltune's wheel holds but its metadata: its name there, and where it is.

    The names are those of the wheel whether mltune runs from a wheel or from a checkout, in which
    the bundled folders stand beside the package instead of in it.
    """
    for path in _files_below(_PACKAGE):
        yield f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}", path
    if _BUNDLED.is_dir():
        return
    for name in _FOLDERS:
        folder = _bundled_folder(name)
        for path in _files_below(folder):
            inside = path.relative_to(folder).as_posix()
            yield f"{_PACKAGE.name}/{_BUNDLED.name}/{name}/{inside}", path
    for name in _LOCKS:
        yield f"{_PACKAGE.name}/{_BUNDLED.name}/locks/{name}", bundled_lock(name)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder but what Python and the system leave there."""
    for path in sorted(folder.rglob("*")):
        is_left_over = "__pycache__" in path.parts or path.suffix in (".pyc", ".pyo")
        if path.is_file() and not is_left_over and path.name != ".DS_Store":
            yield path
