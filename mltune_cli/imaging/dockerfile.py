"""What a Dockerfile asks for: its arguments, its base images, and the files it copies."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mltune_cli.errors import UsageError
from mltune_cli.imaging.dockerfile_lines import Instruction, Lines, expand, read_lines

_KNOWN = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_BUILDKIT_FLAGS: Mapping[str, tuple[str, ...]] = {
    "ADD": ("checksum", "chmod", "exclude", "keep-git-dir", "link", "unpack"),
    "COPY": ("chmod", "exclude", "link", "parents"),
    "RUN": ("device", "mount", "network", "security"),
}
_REMOTE = re.compile(r"(https?|ftp|git|ssh)://|git@", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"([^\s=]+)=((?:\\.|\"(?:\\.|[^\"])*\"|'[^']*'|[^\s\"'])*)")


@dataclass(frozen=True)
class Copied:
    """What one COPY or ADD takes out of the context.

    Attributes:
        line: of the Dockerfile.
        instruction: `COPY` or `ADD`.
        sources: patterns, relative to the context; addresses on the net are left out.
    """

    line: int
    instruction: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        line: of its FROM.
        name: after AS, in small letters.
        base: what it starts from, its variables replaced.
        is_base_stage: whether that is an earlier stage (or nothing: `scratch`), not an image.
        args: the defaults of its ARGs; None for one without.
    """

    line: int
    name: str | None
    base: str
    is_base_stage: bool
    args: Mapping[str, str | None]


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile that has been read.

    Attributes:
        name: how messages call it.
        text: as it stands.
        global_args: the defaults of the ARGs before the first FROM; None for one without.
        stages: in order; at least one.
        copied: what comes from the context.
        images: every image that it needs, each once, in order, as an engine is asked for it.
        lines: its instructions.
    """

    name: str
    text: str
    global_args: Mapping[str, str | None]
    stages: tuple[Stage, ...]
    copied: tuple[Copied, ...]
    images: tuple[str, ...]
    lines: Lines = field(repr=False)

    @property
    def args(self) -> frozenset[str]:
        """The names of all arguments that it declares."""
        return frozenset(self.global_args).union(*(stage.args for stage in self.stages))

    @property
    def base(self) -> str:
        """The image under its last stage, or `scratch`."""
        stages = {stage.name: stage for stage in self.stages if stage.name is not None}
        stage = self.stages[-1]
        for _ in self.stages:
            if stage.is_base_stage and stage.base in stages:
                stage = stages[stage.base]
        return stage.base


def read_dockerfile(path: Path, build_args: Mapping[str, str] | None = None) -> Dockerfile:
    """Read a Dockerfile as far as its context and its base images go.

    Args:
        path: of the file.
        build_args: the arguments that the build is going to get.

    Raises:
        UsageError: it cannot be read, or the builder would not understand it; with `FILE:LINE`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such Dockerfile") from None
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path}: cannot be read as a Dockerfile: {problem}") from None
    return parse_dockerfile(text, str(path), build_args)


def parse_dockerfile(
    text: str, name: str = "Dockerfile", build_args: Mapping[str, str] | None = None
) -> Dockerfile:
    """Read the text of a Dockerfile; like `read_dockerfile`.

    Raises:
        UsageError: the builder would not understand it; with `NAME:LINE`.
    """
    return _Reader(text, name, build_args or {}).read()


def require_classic(dockerfile: Dockerfile) -> None:
    """Refuse what only BuildKit understands, before the classic builder does it with less words.

    Raises:
        UsageError: a syntax line, `RUN --mount`, a heredoc and the like; with `FILE:LINE`.
    """
    remedy = "build with --builder buildx, or do without it"
    directive = dockerfile.lines.directive_lines.get("syntax")
    if directive is not None:
        raise UsageError(
            f"{dockerfile.name}:{directive}: the classic builder knows no # syntax line; {remedy}"
        )
    for instruction in dockerfile.lines.instructions:
        place = f"{dockerfile.name}:{instruction.line}"
        if instruction.heredocs:
            raise UsageError(f"{place}: the classic builder knows no heredoc; {remedy}")
        for flag in _BUILDKIT_FLAGS.get(instruction.name, ()):
            if flag in instruction.flags:
                raise UsageError(
                    f"{place}: the classic builder knows no {instruction.name} --{flag}; {remedy}"
                )


class _Reader:
    """Reads the instructions one after the other, and keeps what the next one needs to know."""

    def __init__(self, text: str, name: str, build_args: Mapping[str, str]) -> None:
        self._text = text
        self._name = name
        self._build_args = build_args
        self._lines = read_lines(text, name)
        self._global_args: dict[str, str | None] = {}
        self._declared = self._global_args  # the current stage's, after a FROM
        self._global_values: dict[str, str] = {}
        self._stages: list[Stage] = []
        self._values: dict[str, str] = {}  # of the current stage
        self._stage_values: dict[str, dict[str, str]] = {}
        self._copied: list[Copied] = []
        self._images: list[str] = []

    def read(self) -> Dockerfile:
        """Read all of them."""
        for instruction in self._lines.instructions:
            self._read(instruction)
        if not self._stages:
            raise UsageError(f"{self._name}:1: has no FROM, so that there is nothing to build from")
        return Dockerfile(
            name=self._name,
            text=self._text,
            global_args=self._global_args,
            stages=tuple(self._stages),
            copied=tuple(self._copied),
            images=tuple(dict.fromkeys(self._images)),
            lines=self._lines,
        )

    def _read(self, instruction: Instruction) -> None:
        if instruction.name not in _KNOWN:
            raise self._fault(instruction, _unknown(instruction.name))
        if not instruction.rest:
            raise self._fault(instruction, f"{instruction.name} needs an argument")
        if not self._stages and instruction.name not in ("ARG", "FROM"):
            raise self._fault(instruction, f"{instruction.name} stands before the first FROM")
        if instruction.name == "FROM":
            self._read_from(instruction)
        elif instruction.name == "ARG":
            self._read_arg(instruction)
        elif instruction.name == "ENV":
            self._read_env(instruction)
        elif instruction.name in ("COPY", "ADD"):
            self._read_copy(instruction)

    def _fault(self, instruction: Instruction, problem: str) -> UsageError:
        return UsageError(f"{self._name}:{instruction.line}: {problem}")

    def _expand(
        self,
        instruction: Instruction,
        word: str,
        values: Mapping[str, str],
        missing: str | None = None,
    ) -> str:
        try:
            return expand(word, values, self._lines.escape, missing)
        except KeyError as error:
            name = error.args[0]
            raise self._fault(
                instruction,
                f"{instruction.name} {word}: {name} has no value; give it one with "
                f"--build-arg {name}=..., or a default in an ARG before",
            ) from None
        except ValueError as error:
            raise self._fault(instruction, f"{instruction.name}: {error}") from None

    def _read_from(self, instruction: Instruction) -> None:
        words = instruction.rest.split()
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise self._fault(instruction, "FROM is followed by IMAGE or by IMAGE AS NAME")
        base = self._expand(instruction, words[0], self._global_values)
        if not base:
            raise self._fault(instruction, f"FROM {words[0]}: names no image")
        earlier = {stage.name for stage in self._stages}
        is_stage = base.lower() in earlier
        base = base.lower() if is_stage else base
        if not is_stage and base != "scratch":
            self._images.append(base)
        name = words[2].lower() if len(words) == 3 else None
        if name is not None and name in earlier:
            raise self._fault(instruction, f"there is a stage {name} already")
        args: dict[str, str | None] = {}
        self._declared = args
        self._stages.append(
            Stage(instruction.line, name, base, is_stage or base == "scratch", args)
        )
        self._values = dict(self._stage_values.get(base, {})) if is_stage else {}
        if name is not None:
            self._stage_values[name] = self._values

    def _read_arg(self, instruction: Instruction) -> None:
        values = self._values if self._stages else self._global_values
        for name, default in _declarations(instruction.rest):
            if default is not None:
                # In a default, a name without a value is empty, as the builders have it.
                default = self._expand(instruction, default, values, missing="")
            self._declared[name] = default
            if name in self._build_args:
                values[name] = self._build_args[name]
            elif default is not None:
                values[name] = default
            elif self._stages and name in self._global_values:
                values[name] = self._global_values[name]

    def _read_env(self, instruction: Instruction) -> None:
        first, *rest = instruction.rest.split(maxsplit=1)
        pairs = _ASSIGNMENT.findall(instruction.rest) if "=" in first else [(first, "".join(rest))]
        self._values |= {
            name: self._expand(instruction, value, self._values, missing="")
            for name, value in pairs
        }

    def _read_copy(self, instruction: Instruction) -> None:
        words = instruction.words()
        if len(words) < 2:
            raise self._fault(instruction, f"{instruction.name} needs a source and a destination")
        origin = instruction.flags.get("from")
        if origin is not None:
            is_stage = origin.isdigit() or origin.lower() in {s.name for s in self._stages}
            if not is_stage and "$" not in origin:
                self._images.append(origin)
            return
        sources = tuple(
            self._expand(instruction, word, self._values)
            for word in words[:-1]
            if "<<" not in word and not _REMOTE.match(word)
        )
        if sources:
            self._copied.append(Copied(instruction.line, instruction.name, sources))


def _declarations(rest: str) -> list[tuple[str, str | None]]:
    """Return the names of an ARG with their defaults, as they are written."""
    return [
        (match[3], None) if match[3] is not None else (match[1], match[2])
        for match in re.finditer(_ASSIGNMENT.pattern + r"|(\S+)", rest)
    ]


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _KNOWN, n=1)
    return f"there is no instruction {name}" + (f"; is it {close[0]}?" if close else "")
