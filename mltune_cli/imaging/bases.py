"""The base image: in the engine, or pulled into it; and room for what is built on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.engine import Engine, free_bytes
from mltune_cli.imaging.faults import pull_fault
from mltune_cli.imaging.locks import Variant

# Measured: the CPU image takes 1.2 GB and as much again while its layers are made; the CUDA build
# of torch with its libraries takes 7 GB.
_NEEDED_BYTES: dict[Variant, int] = {"cpu": 4 << 30, "gpu": 20 << 30}


@dataclass(frozen=True)
class BaseImage:
    """A base image that is in the engine.

    Attributes:
        name: as it was named.
        image_id: `sha256:...` of its configuration.
        digest: in the registry that it was pulled from; None for one that was imported.
        variables: its environment, `NAME=VALUE` each.
        platform: such as `linux/amd64`.
    """

    name: str
    image_id: str
    digest: str | None
    variables: tuple[str, ...]
    platform: str


def base_image(
    engine: Engine, name: str, platform: str | None, on_progress: Callable[[str], None]
) -> BaseImage:
    """Return a base image, pulled if it is not in the engine.

    Args:
        engine: that holds it.
        name: `NAME[:TAG][@DIGEST]`.
        platform: that it must be for; None for the engine's own.
        on_progress: told that it is being pulled.

    Raises:
        UsageError: the name is none.
        NoVerdictError: it cannot be pulled, or is for another platform.
    """
    from docker.errors import DockerException, ImageNotFound
    from requests.exceptions import RequestException

    wanted = platform or engine.facts.platform
    try:
        try:
            found = _inspected(engine, name)
        except ImageNotFound:
            on_progress(f"pulling {name}")
            _pull(engine, name, platform)
            found = _inspected(engine, name)
    except (DockerException, RequestException) as error:
        text = str(getattr(error, "explanation", None) or error)
        raise pull_fault(text, name, wanted, engine.facts.root) from None
    if platform is not None and not _is_of(found, platform):
        raise NoVerdictError(
            f"{name}: is made for {found.platform}, not for --platform {platform}; choose a base "
            "of that platform"
        )
    return found


def _is_of(image: BaseImage, platform: str) -> bool:
    return platform.split("/")[:2] == image.platform.split("/")[:2]


def _pull(engine: Engine, name: str, platform: str | None) -> None:
    """Pull an image.

    Raises:
        docker.errors.APIError: no registry gives it out.
    """
    from docker.errors import APIError

    for message in engine.client.pull(name, stream=True, decode=True, platform=platform):
        if "error" in message:
            raise APIError(str(message["error"]), explanation=str(message["error"]))


def _inspected(engine: Engine, name: str) -> BaseImage:
    image: dict[str, Any] = engine.client.inspect_image(name)
    digests = [str(d).partition("@")[2] for d in image.get("RepoDigests") or ()]
    config = image.get("Config") or {}
    return BaseImage(
        name=name,
        image_id=str(image["Id"]),
        digest=digests[0] if digests else None,
        variables=tuple(map(str, config.get("Env") or ())),
        platform=f"{image.get('Os', 'linux')}/{image.get('Architecture', 'unknown')}",
    )


def require_room(engine: Engine, variant: Variant) -> None:
    """Refuse to build where the engine's disk has no room for the image.

    Raises:
        NoVerdictError: names what is free and what is needed.
    """
    free = free_bytes(engine.facts)
    needed = _NEEDED_BYTES[variant]
    if free is not None and free < needed:
        raise NoVerdictError(
            f"the engine's disk has {free / 2**30:.1f} GiB free in {engine.facts.root}, and the "
            f"{variant} image needs {needed / 2**30:.0f}; free some with `docker system prune`, or "
            "give it a larger disk"
        )
