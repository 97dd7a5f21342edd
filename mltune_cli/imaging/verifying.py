"""`--verify`: is the image a function of its inputs? Two builds from nothing, held together."""

import hashlib
import io
import secrets
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from mltune_cli.imaging.building import BuildEars, BuiltImage, build_image
from mltune_cli.imaging.buildx import ArchiveRequest, build_with_buildx
from mltune_cli.imaging.engine import Engine
from mltune_cli.imaging.labels import OWNER, owner
from mltune_cli.imaging.leftovers import remove_container, remove_tag
from mltune_cli.imaging.plan import ImagePlan
from mltune_cli.imaging.receipt import VerificationReceipt
from mltune_cli.imaging.smoke import installed_packages
from mltune_cli.launching.held_signals import held_signals

_CHUNK_BYTES = 1 << 20
_SHOWN = 50


def verify_build(
    engine: Engine, plan: ImagePlan, image: BuiltImage, ears: BuildEars, scratch: Path
) -> VerificationReceipt:
    """Build once more from nothing, or twice where whole images can be compared, and compare.

    BuildKit can give everything one time, so that equal inputs give equal images, bit for bit. The
    engine's own builder cannot: it stamps each image.

    Args:
        engine: that builds.
        plan: what is built.
        image: the first build; with the engine's own builder it must have been made without cache.
        ears: told each step.
        scratch: folder for what is thrown away.

    Raises:
        NoVerdictError: a build failed.
    """
    if plan.builder == "buildx":
        return _compare_archives(engine, plan, ears, scratch)
    tag = f"mltune-verify:{secrets.token_hex(6)}"
    again = None
    try:
        request = replace(plan.request, tag=tag, use_cache=False)
        again = build_image(engine, plan.context, request, ears)
        packages = []
        for number, image_id in enumerate((image.image_id, again.image_id)):
            folder = scratch / f"verify-{number}"
            folder.mkdir()
            packages.append(installed_packages(engine, image_id, folder))
        images = (image.image_id, again.image_id)
        return compare_contents(engine, images, (packages[0], packages[1]))
    finally:
        with held_signals():
            stages = set() if again is None else set(again.stages) - set(image.stages)
            for name in (tag, *stages):
                remove_tag(engine.client, name)


def _compare_archives(
    engine: Engine, plan: ImagePlan, ears: BuildEars, scratch: Path
) -> VerificationReceipt:
    request = replace(plan.request, use_cache=False)
    digests = []
    for number in range(2):
        archive = ArchiveRequest(scratch / f"image-{number}.tar", epoch=0)
        build_with_buildx(engine, plan.context, request, ears, archive)
        with archive.target.open("rb") as stream:
            digests.append(f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}")
        archive.target.unlink()
    return compare_digests((digests[0], digests[1]))


def compare_contents(
    engine: Engine, images: tuple[str, str], packages: tuple[dict[str, str], dict[str, str]]
) -> VerificationReceipt:
    """Compare two images file by file: kind, rights, owner and content; times are not compared.

    Args:
        engine: that holds them.
        images: their ids.
        packages: what pip lists in each.
    """
    trees = [_files(engine, image) for image in images]
    differences = _differences("package ", *packages) + _differences("", *trees)
    digests = [hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest() for tree in trees]
    return VerificationReceipt(
        method="contents",
        is_identical=not differences,
        digests=(f"sha256:{digests[0]}", f"sha256:{digests[1]}"),
        differences=_shortened(differences),
    )


def compare_digests(digests: tuple[str, str]) -> VerificationReceipt:
    """Compare two whole images by their digests."""
    return VerificationReceipt(
        method="image_digest",
        is_identical=digests[0] == digests[1],
        digests=digests,
        differences=[] if digests[0] == digests[1] else [f"image: {digests[0]} | {digests[1]}"],
    )


def _differences(kind: str, a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [
        f"{kind}{name}: {a.get(name, 'missing')} | {b.get(name, 'missing')}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"and {more} more"]


def _files(engine: Engine, image: str) -> dict[str, str]:
    """Return what an image holds: path to a description with a digest."""
    with _exported(engine, image) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        return {member.name: _description(archive, member) for member in archive}


def _description(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    rights = f"{member.mode:o} {member.uid}:{member.gid}"
    if member.issym() or member.islnk():
        return f"link to {member.linkname} {rights}"
    if not member.isfile():
        return f"type {member.type!r} {rights}"
    digest = xxhash.xxh3_128()
    content = archive.extractfile(member)
    while content is not None and (chunk := content.read(_CHUNK_BYTES)):
        digest.update(chunk)
    return f"{digest.hexdigest()} {rights}"


@contextmanager
def _exported(engine: Engine, image: str) -> Iterator[io.BufferedReader]:
    """Give an image's files as one stream; the container that this takes is never started."""
    client = engine.client
    container = client.create_container(image, ["true"], labels={OWNER: owner()})["Id"]
    try:
        chunks = client.export(container, chunk_size=_CHUNK_BYTES)
        yield io.BufferedReader(_Chunks(chunks), _CHUNK_BYTES)
    finally:
        remove_container(client, container)


class _Chunks(io.RawIOBase):
    """Chunks that arrive, read as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes; 0 at the end."""
        self._rest = self._rest or next(self._chunks, b"")
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
