"""What mltune must not leave behind in an engine: containers, and images without a name.

A command that ends, however it ends, removes its own. What one that was killed outright could not
remove is found by its labels the next time.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mltune_cli.imaging.labels import FINISHED, OWNER, STAGE, is_abandoned

_CANCELLED_SECONDS = 15.0
_PAUSE_SECONDS = 0.1


@contextlib.contextmanager
def shared_build_lock() -> Iterator[None]:
    """Tell others that a build runs, whose half-made images are not rubbish."""
    with _lock_file() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def _lock_file() -> Iterator[int]:
    path = Path(tempfile.gettempdir()) / f"mltune-builds-{os.getuid()}.lock"
    # O_NOFOLLOW: in a folder that everybody writes to, a link may point at somebody's file.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def remove_container(client: Any, name: str) -> None:
    """Remove a container by force; nothing happens where there is none."""
    from docker.errors import APIError, NotFound

    for _ in range(3):
        try:
            client.remove_container(name, force=True, v=True)
        except NotFound:
            return
        except APIError:
            time.sleep(_PAUSE_SECONDS)  # its removal is under way already
        else:
            return


def remove_tag(client: Any, tag: str) -> None:
    """Take a name from an image, and the image with it where that was its last use."""
    from docker.errors import APIError

    # It has no such name, or a container still uses the image.
    with contextlib.suppress(APIError):
        client.remove_image(tag)


def remove_dangling(client: Any, images: Sequence[str]) -> list[str]:
    """Remove those of some images that have neither a name nor an image made from them.

    A cancelled step's container goes a moment after the connection; until then its image is held.

    Returns:
        The ids of what was removed.
    """
    from docker.errors import APIError
    from requests.exceptions import RequestException

    removed: list[str] = []
    deadline = time.monotonic() + _CANCELLED_SECONDS
    waiting = list(dict.fromkeys(reversed(images)))
    try:
        while waiting and time.monotonic() < deadline:
            dangling = _dangling(client)
            held = []
            for image in waiting:
                full = next((i for i in dangling if i.partition(":")[2].startswith(image)), None)
                if full is None:
                    continue
                try:
                    client.remove_image(full)
                    removed.append(full)
                except APIError as error:
                    if error.status_code == 409:
                        held.append(image)
            waiting = held
            if waiting:
                time.sleep(_PAUSE_SECONDS)
    except (APIError, RequestException):
        pass  # the engine is gone, which may be why the build failed
    return removed


def _dangling(client: Any) -> list[str]:
    return [str(image["Id"]) for image in client.images(filters={"dangling": True})]


def _unfinished(client: Any) -> list[str]:
    """Return the images of builds that were cut short; finished ones that lost their name stay."""
    images = client.images(filters={"dangling": True, "label": STAGE})
    return [str(i["Id"]) for i in images if (i.get("Labels") or {}).get(STAGE) != FINISHED]


def sweep(client: Any) -> list[str]:
    """Remove what killed commands of this machine left behind.

    Containers go whose label names a process that is gone; images without a name go while no build
    of ours runs.

    Returns:
        One line for each thing that was removed.
    """
    from docker.errors import APIError

    said = []
    for container in client.containers(all=True, filters={"label": OWNER}):
        if is_abandoned(str(container["Labels"].get(OWNER, ""))):
            remove_container(client, container["Id"])
            said.append(
                f"removed the container {container['Id'][:12]} of a command that was killed"
            )
    with _lock_file() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return said
        for image in _unfinished(client):
            with contextlib.suppress(APIError):  # a container of somebody else's holds it
                client.remove_image(image)
                said.append(f"removed the unfinished image {image.partition(':')[2][:12]}")
    return said
