"""A project's Dockerfile and .dockerignore, rendered from mltune's templates.

Rendering is pure: the same project gives the same bytes, and nothing is asked of the machine.
"""

import json
import re
from dataclasses import dataclass

from mltune_cli import __version__
from mltune_cli.bundled import bundled_template
from mltune_cli.errors import UsageError

# The CUDA of `cuda-toolkit` in requirements-gpu.txt, and the first Ubuntu with Python 3.12.
CUDA_BASE = "nvidia/cuda:13.0.3-base-ubuntu24.04"
CPU_BASE = "python:3.12-slim-bookworm"
# Files whose names mean the same to COPY, to .dockerignore and to a shell.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._+@,=-]+(?:/[A-Za-z0-9._+@,=-]+)*")


@dataclass(frozen=True)
class DockerfileProject:
    """What an image is made for.

    Attributes:
        title: of the project.
        version: of the project.
        description: one sentence.
        licenses: an SPDX expression; empty where there is none.
        files: the files and folders of the project that the image holds, relative to its folder,
            with `/` between the parts; they stand below `/workspace` in the image.
        command: what the image runs.
    """

    title: str
    version: str
    description: str
    licenses: str = ""
    files: tuple[str, ...] = ()
    command: tuple[str, ...] = ("mltune", "repro-check")


# mltune's own image: the packages and mltune, with the bundled recipe.
MLTUNE = DockerfileProject(
    title="mltune",
    version=__version__,
    description=(
        "Fine-tune causal language models and prove that the training repeats, bit for bit."
    ),
    licenses="Apache-2.0",
)


def render_dockerfile(project: DockerfileProject) -> str:
    """Return the text of a project's Dockerfile.

    Raises:
        UsageError: a file whose name COPY would take for a pattern, or text of several lines.
    """
    return _render("Dockerfile.j2", project)


def render_dockerignore(project: DockerfileProject) -> str:
    """Return the text of the .dockerignore that belongs to a project's Dockerfile.

    Raises:
        UsageError: as `render_dockerfile`.
    """
    return _render("dockerignore.j2", project)


def _render(template: str, project: DockerfileProject) -> str:
    import jinja2  # slow to import, and only a build needs it

    for file in project.files:
        if not _PLAIN_NAME.fullmatch(file) or {".", ".."} & set(file.split("/")):
            raise UsageError(
                f"{file!r}: cannot be named in a Dockerfile; name it relative to the project, with "
                "letters, digits and . _ + @ , = - alone"
            )
    for text in (project.title, project.version, project.description, project.licenses):
        if not text.isprintable():
            raise UsageError(f"{text!r}: cannot stand in a Dockerfile; write it in one line")
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 (no HTML; `quoted` and `as_json` escape for a Dockerfile)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = _quoted
    environment.filters["as_json"] = _as_json
    text = bundled_template(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        title=project.title,
        version=project.version,
        description=project.description,
        licenses=project.licenses,
        files=project.files,
        command=project.command,
        mltune_version=__version__,
        cuda_base=CUDA_BASE,
        cpu_base=CPU_BASE,
    )


def _quoted(text: str) -> str:
    """Return a text in the double quotes of a Dockerfile, in which `$` names a variable."""
    return '"' + re.sub(r'([\\"$])', r"\\\1", text) + '"'


def _as_json(words: list[str] | tuple[str, ...]) -> str:
    return json.dumps(list(words), ensure_ascii=False)
