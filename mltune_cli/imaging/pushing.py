"""An image, given to the registry that its name tells."""

import re

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.engine import Engine
from mltune_cli.imaging.faults import one_line


def push_image(engine: Engine, tag: str) -> list[str]:
    """Push an image and return `REGISTRY/NAME@DIGEST`, under which the registry knows it now.

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
    digest = None
    try:
        for message in engine.client.push(repository, version, stream=True, decode=True):
            if "error" in message:
                raise NoVerdictError(_refused(tag, str(message["error"])))
            digest = (message.get("aux") or {}).get("Digest") or digest
    except (DockerException, RequestException) as error:
        raise NoVerdictError(_refused(tag, str(error))) from None
    if digest is not None:
        return [f"{repository}@{digest}"]
    # The image may have other names, and be known elsewhere under them.
    known = engine.client.inspect_image(tag).get("RepoDigests") or ()
    return [str(name) for name in known if str(name).startswith(f"{repository}@")]


def _refused(tag: str, said: str) -> str:
    if any(word in said for word in ("denied", "unauthorized", "authentication", "no basic auth")):
        return f"--push: the registry refuses {tag}; log in with `docker login`, or change --tag"
    if re.search(r"dial tcp|no such host|i/o timeout|TLS handshake|Client\.Timeout", said):
        registry = tag.partition("/")[0]
        return (
            f"--push: the registry {registry} is not reached; check the network, or change --tag: "
            f"{one_line(said)}"
        )
    return f"--push: {tag} could not be pushed: {one_line(said)}"
