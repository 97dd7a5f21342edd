"""The files of a new project, rendered from the templates. Nothing is written here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mltune_cli import __version__
from mltune_cli.bundled import DATASET_PREFIX, bundled_data, bundled_lock, bundled_template
from mltune_cli.imaging.dockerfile_text import (
    DockerfileProject,
    render_dockerfile,
    render_dockerignore,
)
from mltune_cli.imaging.locks import LOCK_NAMES

_DATA = ("train.jsonl", "val.jsonl")
_IN_IMAGE = ("recipe.yaml", "repro_dataset")
WORKFLOW = ".github/workflows/smoke-repro.yml"
# Without one of these there is nothing to check; a change of any is checked.
_REQUIRED = ("recipe.yaml", "requirements.txt", "run_repro.sh")
_PATHS = (
    "**.py", "**.sh", "recipe.yaml", "repro_dataset/**", "requirements*.txt", "Dockerfile",
    ".dockerignore", "golden.json", WORKFLOW,
)  # fmt: skip
_OWN_REQUIRED = ("pyproject.toml", "requirements.txt", "templates/recipes/smoke.yaml")
_OWN_PATHS = (
    "mltune_cli/**", "repro_dataset/**", "templates/**", "requirements*.txt", "pyproject.toml",
    "Dockerfile", ".dockerignore", "golden.json", WORKFLOW,
)  # fmt: skip


@dataclass(frozen=True)
class PlannedFile:
    """A file that a project gets.

    Attributes:
        path: relative to the project, with `/` between the parts.
        why: what it is, in a few words.
        is_program: it may be executed.
        is_list: lines that an existing file of that name gets, as far as it lacks them.
    """

    path: str
    content: bytes
    why: str
    is_program: bool = False
    is_list: bool = False


def planned_files(name: str, *, gpu: bool, ci: Literal["github"] | None) -> tuple[PlannedFile, ...]:
    """Return the files of a project.

    Args:
        name: of the project, for its image.
        gpu: train on a GPU where there is one, and build the image on CUDA.
        ci: whose workflow is written.
    """
    return tuple(_files(name, gpu=gpu, ci=ci))


def _files(name: str, *, gpu: bool, ci: Literal["github"] | None) -> Iterator[PlannedFile]:
    yield _text("recipe.yaml", _rendered("recipe.yaml.j2", gpu=gpu), "what is trained")
    for data in _DATA:
        content = bundled_data(DATASET_PREFIX + data).read_bytes()
        yield PlannedFile(f"repro_dataset/{data}", content, "rows")
    yield _text("train.py", _template("train.py"), "mltune train, for pipelines")
    yield PlannedFile(
        "run_repro.sh", _template("run_repro.sh").encode(), "mltune repro-check, for pipelines",
        is_program=True,
    )  # fmt: skip
    project = DockerfileProject(
        title=name,
        version="0.1.0",
        description=f"{name}, trained by mltune.",
        files=_IN_IMAGE,
        command=("mltune", "repro-check", "--config", "recipe.yaml"),
    )
    yield _text("Dockerfile", render_dockerfile(project), "the image that mltune build-image makes")
    yield _text(".dockerignore", render_dockerignore(project), "what of the project it is sent")
    # The hosted runner checks on a CPU, so its lock is always there.
    for variant in ("cpu", "gpu") if gpu else ("cpu",):
        lock = LOCK_NAMES["gpu" if variant == "gpu" else "cpu"]
        yield PlannedFile(lock, bundled_lock(lock).read_bytes(), f"pinned packages, {variant}")
    if ci == "github":
        yield _text(WORKFLOW, render_workflow(), "the check of every pull request")
    yield PlannedFile(
        ".gitignore", _template("gitignore").encode(), "what is not committed", is_list=True
    )


def render_workflow(*, own: bool = False) -> str:
    """Return the text of the workflow `smoke-repro.yml`.

    Args:
        own: for mltune's own repository, which installs itself and trains the bundled recipe.
    """
    paths, required = (_OWN_PATHS, _OWN_REQUIRED) if own else (_PATHS, _REQUIRED)
    return _rendered(
        "smoke-repro.yml.j2", own=own, paths=paths, required=required, version=__version__
    )


def _text(path: str, text: str, why: str) -> PlannedFile:
    return PlannedFile(path, text.encode(), why)


def _template(name: str) -> str:
    return _place(name).read_text(encoding="utf-8")


def _rendered(name: str, **values: object) -> str:
    from jinja2 import Environment, StrictUndefined

    # A workflow has expressions in double braces of its own.
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True,
        lstrip_blocks=True, variable_start_string="<<", variable_end_string=">>",
        autoescape=False,  # noqa: S701 - YAML, of values that are ours
    )  # fmt: skip
    return environment.from_string(_template(name)).render(values)


def _place(name: str) -> Path:
    return bundled_template(f"project/{name}")
