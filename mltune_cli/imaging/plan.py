"""What `build-image` is going to do, settled before an engine is asked for anything."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mltune_cli.digests import file_digest
from mltune_cli.errors import UsageError
from mltune_cli.imaging.archive import BuildContext
from mltune_cli.imaging.building import BuildRequest
from mltune_cli.imaging.context import gather_context, refuse_secrets
from mltune_cli.imaging.dockerfile import (
    Dockerfile,
    parse_dockerfile,
    read_dockerfile,
    require_classic,
)
from mltune_cli.imaging.dockerfile_text import CPU_BASE, MLTUNE, render_dockerfile
from mltune_cli.imaging.labels import image_labels
from mltune_cli.imaging.locks import Variant, variant_lock
from mltune_cli.imaging.packed_wheel import pack_wheel
from mltune_cli.manifest import GitFacts

Builder = Literal["sdk", "buildx"]
REPOSITORY = "mltune"
_SHORT_DIGITS = 8
_OWN_NAME = "mltune's own Dockerfile"
# As the engine checks it: an optional registry, lower-case parts, an optional tag.
_TAG = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:(?:[._]|__|-+|/)[a-z0-9]+)*(?::\w[\w.-]{0,127})?"
)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_LEAST_MEMORY_BYTES = 6 << 20


@dataclass(frozen=True)
class BuildOptions:
    """What the user asked to have built.

    Attributes:
        gpu: the CUDA base and the CUDA build of torch.
        tag: name of the image; None for `mltune:repro-` and the first digits of the commit.
        base: image to build on; None for the Dockerfile's own.
        build_args: `NAME=VALUE` each.
        wheelhouse: folder with wheels, to install without a network.
        ca_bundle: certificates that the package index is trusted by.
        builder: the engine's own (`sdk`), or BuildKit.
        platform: such as `linux/arm64`; None for the engine's own.
        dockerfile: None for `./Dockerfile`, or mltune's own where there is none.
        use_cache: whether steps may be taken from earlier builds.
        seconds: limit of a build, and of a run; None for none.
    """

    gpu: bool = False
    tag: str | None = None
    base: str | None = None
    build_args: Sequence[str] = ()
    wheelhouse: Path | None = None
    ca_bundle: Path | None = None
    builder: Builder = "sdk"
    platform: str | None = None
    dockerfile: Path | None = None
    use_cache: bool = True
    seconds: float | None = None


@dataclass(frozen=True)
class ImagePlan:
    """What is built, from what.

    Attributes:
        dockerfile: as it was read.
        is_own: whether it is mltune's own.
        lock: file with the pinned packages.
        base: image that the last stage starts from.
    """

    variant: Variant
    dockerfile: Dockerfile
    is_own: bool
    context: BuildContext
    context_digest: str
    lock: Path
    base: str
    git: GitFacts | None
    builder: Builder
    request: BuildRequest

    @property
    def lock_digest(self) -> str:
        """The digest of the lock's bytes."""
        return file_digest(self.lock)


def image_plan(
    options: BuildOptions, project: Path, git: GitFacts | None, scratch: Path
) -> ImagePlan:
    """Settle what is built.

    Args:
        options: what the user asked for.
        project: folder with the Dockerfile and what it copies.
        git: the folder's commit.
        scratch: an empty folder, for the wheel of the running mltune.

    Raises:
        UsageError: a flag, the Dockerfile or a file that it copies cannot be used.
    """
    variant: Variant = "gpu" if options.gpu else "cpu"
    lock = variant_lock(variant, project)
    source = _dockerfile_source(options.dockerfile, project)
    build_args = _build_args(options, source, lock)
    if isinstance(source, Path):
        dockerfile = read_dockerfile(source, build_args)
    else:
        dockerfile = parse_dockerfile(source, _OWN_NAME, build_args)
    if options.builder == "sdk":
        require_classic(dockerfile)
    unknown = [n for n in _given(options.build_args) if n not in dockerfile.args]
    if unknown:
        raise UsageError(
            f"--build-arg {unknown[0]}: {dockerfile.name} has no ARG {unknown[0]}; it has "
            f"{', '.join(sorted(dockerfile.args)) or 'none'}"
        )
    if options.base is not None and not {"BASE", "CUDA_BASE"} & dockerfile.args:
        raise UsageError(
            f"--base: {dockerfile.name} has no ARG BASE to set; write `ARG BASE=...` and "
            "`FROM ${BASE}` into it"
        )
    context = gather_context(
        source,
        project=project,
        variant=variant,
        wheel=pack_wheel(scratch),
        lock=lock,
        wheelhouse=options.wheelhouse,
        ca_bundle=options.ca_bundle,
        build_args=build_args,
    )
    digest = context.digest()
    request = BuildRequest(
        tag=_tag(options.tag, git, digest),
        build_args={name: v for name, v in build_args.items() if name in dockerfile.args},
        labels=image_labels(git, digest, variant),
        platform=options.platform,
        use_cache=options.use_cache,
        seconds=options.seconds,
        dockerfile=dockerfile.name,
        base=dockerfile.base,
    )
    return ImagePlan(
        variant=variant,
        dockerfile=dockerfile,
        is_own=isinstance(source, str),
        context=context,
        context_digest=digest,
        lock=lock,
        base=dockerfile.base,
        git=git,
        builder=options.builder,
        request=request,
    )


def _given(build_args: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE`s.

    Raises:
        UsageError: one has no `=`, or holds a secret, which would stay readable in the image.
    """
    values: dict[str, str] = {}
    for text in build_args:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"--build-arg {text}: must be NAME=VALUE")
        values[name] = value
    refuse_secrets(values)
    return values


def _build_args(options: BuildOptions, source: Path | str, lock: Path) -> dict[str, str]:
    """Return the values for the Dockerfile's ARGs: the variant's, then the user's over them.

    Only a Dockerfile that mltune wrote gets the base for the CPU: in another one, `BASE` is its
    author's, and stays what it is unless --base is given.
    """
    is_ours = isinstance(source, str) or "CUDA_BASE" in read_dockerfile(source).args
    values = {"LOCK": lock.name}
    if is_ours and not options.gpu:
        values["BASE"] = CPU_BASE
    if options.base is not None:
        values |= {"BASE": options.base, "CUDA_BASE": options.base}
    return values | _given(options.build_args)


def _dockerfile_source(named: Path | None, project: Path) -> Path | str:
    """Return the user's Dockerfile, or the text of mltune's own where there is none."""
    if named is not None:
        return named
    path = project / "Dockerfile"
    return path if path.is_file() else render_dockerfile(MLTUNE)


def _tag(named: str | None, git: GitFacts | None, context_digest: str) -> str:
    if named is None:
        source = git.commit if git is not None else context_digest.partition(":")[2]
        return f"{REPOSITORY}:repro-{source[:_SHORT_DIGITS]}"
    if not _TAG.fullmatch(named):
        raise UsageError(
            f"--tag {named}: is no valid name of an image; it looks like mltune:mine, in small "
            "letters"
        )
    return named if ":" in named.rpartition("/")[2] else f"{named}:latest"


def builder_named(name: str) -> Builder:
    """Read `--builder`.

    Raises:
        UsageError: there is no such builder.
    """
    if name == "sdk":
        return "sdk"
    if name == "buildx":
        return "buildx"
    raise UsageError(f"--builder {name}: must be sdk or buildx")


def memory_bytes(text: str | None) -> int | None:
    """Read a size of memory, such as `8g` or `512m`.

    Raises:
        UsageError: it is none, or too little for any container.
    """
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--memory {text}: must be a size, such as 8g or 512m")
    size = int(float(found[1]) * _SIZE_UNITS[found[2].lower()])
    if size < _LEAST_MEMORY_BYTES:
        raise UsageError(f"--memory {text}: engines give a container no less than 6m")
    return size
