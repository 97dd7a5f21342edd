"""What travels in the wheel: the tiny model, the smoke data set, the templates."""

from pathlib import Path

from mltune_cli.errors import NoVerdictError, UsageError

BUNDLED_PREFIX = "mltune/"
TINY_MODEL = "mltune/tiny"
DATASET_PREFIX = "mltune/repro_dataset/"

_PACKAGE = Path(__file__).parent


def _bundled_folder(name: str) -> Path:
    """Return a top-level folder of the project, from the wheel or from a checkout."""
    for folder in (_PACKAGE / "_bundled" / name, _PACKAGE.parent / name):
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
