"""A build context: what is in it, its digest, and the tar archive that an engine reads.

Nothing of the machine goes into either: names are sorted; times, owners and all rights but "may be
executed" are left out.
"""

import stat
import tarfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import xxhash

from mltune_cli.digests import file_digest, json_digest
from mltune_cli.errors import NoVerdictError, UsageError

Content = Path | bytes
_CHUNK_BYTES = 1 << 20
_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class BuildContext:
    """Everything that is sent to the builder.

    Attributes:
        files: by the name in the archive, with `/`: a file, or its bytes.
        dockerfile: the name of the Dockerfile among them.
    """

    files: Mapping[str, Content]
    dockerfile: str = "Dockerfile"

    @property
    def total_bytes(self) -> int:
        """The size of all files together, in bytes.

        Raises:
            UsageError: a file cannot be read.
        """
        return sum(_size_bytes(content) for content in self.files.values())

    def sizes(self) -> list[tuple[str, int]]:
        """Return name and size in bytes of each file, sorted by name.

        Raises:
            UsageError: a file cannot be read.
        """
        return [(name, _size_bytes(content)) for name, content in sorted(self.files.items())]

    def digest(self) -> str:
        """Return one digest over names, contents and which files may be executed.

        Raises:
            UsageError: a file cannot be read.
        """
        entries = []
        for name, content in sorted(self.files.items()):
            try:
                entries.append((name, _content_digest(content), _is_executable(content)))
            except OSError as error:
                raise _unreadable(content, error) from None
        return json_digest(entries)

    def write_tar(self, stream: BinaryIO) -> None:
        """Write the archive; the same context gives the same bytes.

        Raises:
            UsageError: a file cannot be read.
            NoVerdictError: a file changed meanwhile.
        """
        for chunk in self._chunks():
            stream.write(chunk)

    def open_tar(self) -> "TarStream":
        """Return the archive as an open file, made while it is read; nothing is held in memory.

        For the Docker SDK's `build(fileobj=..., custom_context=True)`: its length is known.
        """
        return TarStream(self._chunks(), self.tar_bytes)

    @property
    def tar_bytes(self) -> int:
        """The size of the archive, in bytes.

        Raises:
            UsageError: a file cannot be read.
        """
        total = len(_END)
        for member in self._members():
            total += len(_header(member)) + member.size + _padding_bytes(member.size)
        return total

    def _members(self) -> Iterator[tarfile.TarInfo]:
        parents = {
            str(parent)
            for name in self.files
            for parent in PurePosixPath(name).parents
            if str(parent) != "."
        }
        # Without an entry of its own, a folder gets rights of the engine's choice.
        for folder in sorted(parents):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            yield member
        for name, content in sorted(self.files.items()):
            member = tarfile.TarInfo(name)
            member.size = _size_bytes(content)
            member.mode = 0o755 if _is_executable(content) else 0o644
            yield member

    def _chunks(self) -> Generator[bytes, None, None]:
        for member in self._members():
            yield _header(member)
            if member.isdir():
                continue
            yield from _content(self.files[member.name], member.size)
            yield bytes(_padding_bytes(member.size))
        yield _END


class TarStream:
    """An archive that is made while it is read."""

    def __init__(self, chunks: Generator[bytes, None, None], length_bytes: int) -> None:
        self._chunks = chunks
        self._length_bytes = length_bytes
        self._rest = memoryview(b"")

    def __len__(self) -> int:
        """Return how long it is, in bytes: requests sends it as the length of the body."""
        return self._length_bytes

    def __bool__(self) -> bool:
        """Be true, as a file is: the SDK asks whether one was given."""
        return True

    def __iter__(self) -> Iterator[bytes]:
        """Yield it in chunks: requests takes for a stream what can be iterated over."""
        while chunk := self.read(_CHUNK_BYTES):
            yield chunk

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`, or all that are left; none at the end."""
        if size < 0:
            return b"".join(self)
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        taken = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        return taken

    def close(self) -> None:
        """Close the file that is being read."""
        self._chunks.close()


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding_bytes(size: int) -> int:
    return -size % tarfile.BLOCKSIZE


def _content(content: Content, size_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of a file, as many as its header says."""
    if isinstance(content, bytes):
        yield content
        return
    left = size_bytes
    try:
        with content.open("rb") as stream:
            while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
            has_grown = bool(stream.read(1))
    except OSError as error:
        raise _unreadable(content, error) from None
    if left or has_grown:
        raise NoVerdictError(f"{content}: changed while it was sent to the builder; build again")


def _content_digest(content: Content) -> str:
    if isinstance(content, bytes):
        return "xxh3_128:" + xxhash.xxh3_128(content).hexdigest()
    return file_digest(content)


def _size_bytes(content: Content) -> int:
    if isinstance(content, bytes):
        return len(content)
    try:
        return content.stat().st_size
    except OSError as error:
        raise _unreadable(content, error) from None


def _is_executable(content: Content) -> bool:
    return isinstance(content, Path) and bool(content.stat().st_mode & stat.S_IXUSR)


def _unreadable(content: Content, error: OSError) -> UsageError:
    name = content if isinstance(content, Path) else "a file of the build context"
    return UsageError(f"{name}: cannot be read: {error.strerror or error}")
