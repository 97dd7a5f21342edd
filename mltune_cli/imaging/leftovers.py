"""What mltune must not leave behind in an engine: containers, and images without a name.

A command that ends, however it ends, removes its own. What one that was killed outright could not
remove is found the next time: containers by their labels, images by the build's journal.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltune_cli.imaging.labels import OWNER, is_abandoned, owner

# Measured: the engine writes the layer with torch for 30 s, and hears nothing meanwhile.
_CANCELLED_SECONDS = 45.0
# An engine that hears of the cancellation late goes on with quick steps for so long.
_SETTLED_SECONDS = 2.0
_PAUSE_SECONDS = 0.1


class BuildJournal:
    """Writes down the images of a running build, for whoever has to tidy up after a kill.

    A label would not do: the images of a living build carry the same, and are without a name until
    it is done. Where nothing can be written there is no journal, and a kill leaves what it leaves.

    Args:
        host: address of the engine.
    """

    def __init__(self, host: str) -> None:
        self._path: Path | None = None
        with contextlib.suppress(OSError, RuntimeError):
            folder = _journals()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{secrets.token_hex(8)}.txt"
            path.write_text(f"{owner()}\n{host}\n", encoding="utf-8")
            self._path = path

    def note(self, image: str) -> None:
        """Write an image down."""
        if self._path is not None:
            with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                file.write(f"{image}\n")

    def close(self) -> None:
        """Throw the journal away: the build has tidied up itself."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Page:
    """A journal that was read."""

    path: Path
    owner: str
    host: str
    images: tuple[str, ...]


def _pages() -> list[_Page]:
    """Read all journals; one that is being written may end in half a line, which names nothing."""
    pages = []
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(_journals().glob("*.txt")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if len(lines) > 1:
                pages.append(_Page(path, lines[0], lines[1], tuple(lines[2:])))
    return pages


def _journals() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "mltune" / "builds"


def remove_container(client: Any, name: str) -> None:
    """Remove a container by force; nothing happens where there is none, or no engine any more."""
    from docker.errors import APIError, NotFound
    from requests.exceptions import RequestException

    for _ in range(3):
        try:
            client.remove_container(name, force=True, v=True)
        except (NotFound, RequestException):
            return  # of an engine that is lost, the next command sweeps it up
        except APIError:
            time.sleep(_PAUSE_SECONDS)  # its removal is under way already
        else:
            return


def remove_tag(client: Any, tag: str) -> None:
    """Take a name from an image, and the image with it where that was its last use."""
    from docker.errors import APIError
    from requests.exceptions import RequestException

    # It has no such name, or a container still uses the image, or the engine is lost.
    with contextlib.suppress(APIError, RequestException):
        client.remove_image(tag)


def await_container_end(client: Any, container: str) -> None:
    """Wait until a cancelled step's container is gone: until then its image may still be made."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    deadline = time.monotonic() + _CANCELLED_SECONDS
    # It is gone, or the engine is.
    with contextlib.suppress(DockerException, RequestException):
        while time.monotonic() < deadline:
            client.inspect_container(container)
            time.sleep(_PAUSE_SECONDS)


def nameless_images(client: Any) -> frozenset[str]:
    """Return the ids of the images that have neither a name nor an image made from them."""
    return frozenset(str(image["Id"]) for image in client.images(filters={"dangling": True}))


def remove_dangling(
    client: Any, images: Sequence[str], earlier: frozenset[str] | None = None
) -> list[str]:
    """Remove those of some images that have neither a name nor an image made from them.

    A cancelled step's container goes a moment after the connection; until then its image is held.
    Images that another build of a living process has come upon stay: it may stand on them.

    Args:
        client: of the engine.
        images: beginnings of their ids.
        earlier: the nameless images from before a build that was cancelled. The builder may have
            made more images than it was heard to tell of, or be about to: they are known by what
            they stand on, the last of `images`, and go as well. None to remove those images alone.

    Returns:
        The ids of what was removed.
    """
    from docker.errors import APIError
    from requests.exceptions import RequestException

    removed: list[str] = []
    began = time.monotonic()
    me = owner()
    living = [page for page in _pages() if page.owner != me and not is_abandoned(page.owner)]
    used = {image for page in living for image in page.images}
    waiting = [image for image in dict.fromkeys(reversed(images)) if image not in used]
    try:
        if earlier is not None and images:
            waiting = [*_made_meanwhile(client, images[-1], earlier, used), *waiting]
        while waiting and time.monotonic() - began < _CANCELLED_SECONDS:
            dangling = {_digits(image["Id"]) for image in client.images(filters={"dangling": True})}
            held = []
            for image in waiting:
                full = next((i for i in dangling if i.startswith(image)), None)
                if full is None:
                    continue
                try:
                    client.remove_image(full)
                    removed.append(f"sha256:{full}")
                except APIError as error:
                    if error.status_code == 409:
                        held.append(image)
            waiting = held
            time.sleep(_PAUSE_SECONDS if waiting else 0)
    except (APIError, RequestException):
        pass  # the engine is gone, which may be why the build failed
    return removed


def _made_meanwhile(
    client: Any, foundation: str, earlier: frozenset[str], used: set[str]
) -> list[str]:
    """Wait until a cancelled builder makes no more images; return those that stand on one.

    Nothing may be removed before: an image whose foundation is gone tells nobody what it is of.
    """
    began = changed = time.monotonic()
    made: list[str] = []
    while time.monotonic() < min(changed + _SETTLED_SECONDS, began + _CANCELLED_SECONDS):
        new = sorted(set(map(_digits, nameless_images(client) - earlier)) - used)
        now = [image for image in new if _stands_on(client, image, foundation)]
        if now != made:
            made, changed = now, time.monotonic()
        time.sleep(_PAUSE_SECONDS)
    return made


def _stands_on(client: Any, image: str, foundation: str) -> bool:
    """Whether an image was made from another, however many images lie between."""
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):  # removed meanwhile
        while image := _digits(client.inspect_image(image).get("Parent")):
            if image.startswith(foundation):
                return True
    return False


def _digits(image_id: object) -> str:
    return str(image_id or "").partition(":")[2]


def sweep(client: Any, host: str) -> list[str]:
    """Remove what killed commands of this machine left behind in an engine.

    Containers go whose label names a process that is gone, and the nameless images that the journal
    of such a process lists.

    Args:
        client: of the engine.
        host: its address.

    Returns:
        One line for each thing that was removed.
    """
    said = []
    for container in client.containers(all=True, filters={"label": OWNER}):
        if is_abandoned(str(container["Labels"].get(OWNER, ""))):
            remove_container(client, container["Id"])
            said.append(f"removed container {container['Id'][:12]} of a command that was killed")
    for page in _pages():
        if page.host == host and is_abandoned(page.owner):
            removed = remove_dangling(client, page.images)
            said += [f"removed image {i.partition(':')[2][:12]} of a killed build" for i in removed]
            with contextlib.suppress(OSError):
                page.path.unlink()
    return said
