"""The files of a new project: recipe, rows, thin scripts, image, locks, workflow.

Rendering is pure: the same name and options give the same bytes.
"""

from dataclasses import dataclass
from typing import Literal

from mltune_cli import __version__
from mltune_cli.bundled import DATASET_PREFIX, bundled_data, bundled_lock, bundled_template
from mltune_cli.errors import UsageError
from mltune_cli.imaging.dockerfile_text import (
    DockerfileProject,
    render_dockerfile,
    render_dockerignore,
)
from mltune_cli.imaging.locks import LOCK_NAMES

Continuous = Literal["github", "none"]
RECIPE = "recipe.yaml"
DATASET = "repro_dataset"
WORKFLOW = ".github/workflows/smoke-repro.yml"
CHECK_COMMAND = ("mltune", "repro-check", "--config", RECIPE)

# Each at the commit of the release that its comment names; this project's own workflows use the
# same ones.
ACTIONS = {
    "checkout": "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1",
    "setup_python": "actions/setup-python@5fda3b95a4ea91299a34e894583c3862153e4b97 # v7.0.0",
    "upload_artifact": "actions/upload-artifact@043fb46d1a93c77aae656e7c1c64a875d1fc6a0a # v7.0.1",
}
# What decides the result of the check, as GitHub's path filters write it.
_DECISIVE_PATHS = (
    "**.py", ".dockerignore", WORKFLOW, "Dockerfile", "golden.json", RECIPE, f"{DATASET}/**",
    "requirements*.txt",
)  # fmt: skip


@dataclass(frozen=True)
class ProjectFile:
    """A file of a new project.

    Attributes:
        path: relative to the project's folder, with `/` between the parts.
        content: its bytes; of a file of which `adds_lines` is true, the lines that it must have.
        reason: what it is for, in a few words.
        is_executable: whether it is started by its name.
        adds_lines: whether an existing file gets the lines that it lacks, instead of being in the
            way.
    """

    path: str
    content: bytes
    reason: str
    is_executable: bool = False
    adds_lines: bool = False


def continuous_named(name: str) -> Continuous:
    """Read `--ci`.

    Raises:
        UsageError: there is no such one.
    """
    if name == "github":
        return "github"
    if name == "none":
        return "none"
    raise UsageError(f"--ci {name}: must be github or none")


def project_files(
    title: str, *, gpu: bool, ci: Continuous, mltune: str | None = None
) -> tuple[ProjectFile, ...]:
    """Return every file of a new project, sorted by path.

    Args:
        title: name of the project; what cannot be printed is left out of it.
        gpu: the recipe computes on CUDA where there is one.
        ci: whether a workflow is among them.
        mltune: what pip takes to install mltune in the workflow, pinned; None leaves it to a
            variable of the repository.
    """
    title = "".join(letter for letter in title if letter.isprintable()).strip() or "project"
    image = DockerfileProject(
        title=title,
        version="0.1.0",
        description="Fine-tunes a language model, repeatably; see recipe.yaml.",
        files=(RECIPE, DATASET),
        command=CHECK_COMMAND,
    )
    files = [
        ProjectFile(RECIPE, _rendered("recipe.yaml.j2", title=title, gpu=gpu), "what is trained"),
        *(
            ProjectFile(f"{DATASET}/{name}", bundled_data(DATASET_PREFIX + name).read_bytes(), what)
            for name, what in (("train.jsonl", "rows to train on"), ("val.jsonl", "held-out rows"))
        ),
        ProjectFile(
            "train.py", _verbatim("train.py"), "hands over to mltune train", is_executable=True
        ),
        ProjectFile(
            "run_repro.sh",
            _verbatim("run_repro.sh"),
            "hands over to mltune repro-check",
            is_executable=True,
        ),
        ProjectFile("Dockerfile", render_dockerfile(image).encode(), "what build-image builds"),
        ProjectFile(
            ".dockerignore", render_dockerignore(image).encode(), "what the image may hold"
        ),
        ProjectFile(
            ".gitignore", _verbatim("gitignore"), "what runs leave behind", adds_lines=True
        ),
        *(
            ProjectFile(name, bundled_lock(name).read_bytes(), f"packages by hash, {variant}")
            for variant, name in LOCK_NAMES.items()
        ),
    ]
    if ci == "github":
        files.append(
            ProjectFile(WORKFLOW, _workflow(files, mltune), "the check in every pull request")
        )
    return tuple(sorted(files, key=lambda file: file.path))


def _workflow(files: list[ProjectFile], mltune: str | None) -> bytes:
    return _rendered(
        "github/workflows/smoke-repro.yml.j2",
        actions=ACTIONS,
        mltune=mltune,
        mltune_version=__version__,
        paths=_DECISIVE_PATHS,
        required=[file.path for file in files if not file.path.startswith(".")],
    )


def _verbatim(name: str) -> bytes:
    return bundled_template(f"project/{name}").read_bytes()


def _rendered(name: str, **values: object) -> bytes:
    import jinja2  # slow to import, and only this needs it

    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 (no HTML)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        # GitHub's expressions have Jinja's own braces.
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<%=",
        variable_end_string="%>",
        comment_start_string="<%#",
        comment_end_string="%>",
    )
    text = _verbatim(name).decode("utf-8")
    return environment.from_string(text).render(**values).encode("utf-8")
