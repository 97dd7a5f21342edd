"""An image, given to the registry that its name tells."""

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.engine import Engine
from mltune_cli.imaging.faults import one_line


def push_image(engine: Engine, tag: str) -> list[str]:
    """Push an image and return the digests under which registries know it.

    Credentials are those of `docker login`; they are neither read nor shown here.

    Args:
        engine: that holds the image.
        tag: `REGISTRY/NAME:TAG`.

    Raises:
        NoVerdictError: the registry is not reached, or refuses.
    """
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    repository, _, version = tag.rpartition(":")
    try:
        for message in engine.client.push(repository, version, stream=True, decode=True):
            if "error" in message:
                raise NoVerdictError(_refused(tag, str(message["error"])))
    except (DockerException, RequestException) as error:
        raise NoVerdictError(_refused(tag, str(error))) from None
    return [str(d) for d in engine.client.inspect_image(tag).get("RepoDigests") or ()]


def _refused(tag: str, said: str) -> str:
    if any(word in said for word in ("denied", "unauthorized", "authentication", "no basic auth")):
        return f"--push: the registry refuses {tag}; log in with `docker login`, or change --tag"
    return f"--push: {tag} could not be pushed: {one_line(said)}"
