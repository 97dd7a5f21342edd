"""A wheel of the mltune that is running, so that the image holds this code and no other.

Byte-identical whenever the code is: names sorted, one time stamp, one set of permissions, and no
compression, whose bytes would depend on the version of zlib.
"""

import base64
import csv
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

from mltune_cli.bundled import packaged_files
from mltune_cli.errors import NoVerdictError

_PROJECT = "mltune"
_TAG = "py3-none-any"
# The earliest time that a zip archive can hold.
_TIME = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE_0644 = 0o100644 << 16


def pack_wheel(folder: Path) -> Path:
    """Write the wheel of the running mltune.

    Args:
        folder: where to; it is made where it is missing.

    Returns:
        `<folder>/mltune-<version>-py3-none-any.whl`.

    Raises:
        NoVerdictError: mltune runs without being installed, or the wheel cannot be written.
    """
    try:
        distribution = metadata.distribution(_PROJECT)
    except metadata.PackageNotFoundError:
        raise NoVerdictError(
            "mltune runs without being installed, so that it cannot be packed into an image; "
            "install it with pip install"
        ) from None
    information = f"{_PROJECT}-{distribution.version}.dist-info"
    path = folder / f"{_PROJECT}-{distribution.version}-{_TAG}.whl"
    try:
        contents = {name: file.read_bytes() for name, file in packaged_files()}
        contents = dict(sorted(contents.items()))
        for name, content in sorted(_metadata_files(distribution).items()):
            contents[f"{information}/{name}"] = content
        contents[f"{information}/RECORD"] = _record(contents, f"{information}/RECORD")
        folder.mkdir(parents=True, exist_ok=True)
        _write_archive(path, contents)
    except OSError as error:
        raise NoVerdictError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def _metadata_files(distribution: metadata.Distribution) -> dict[str, bytes]:
    """Return what an installer keeps of a wheel's dist-info; what it adds itself is left out."""
    names = ["METADATA", "entry_points.txt"]
    licenses: list[str] = distribution.metadata.get_all("License-File") or []
    names += [f"licenses/{name}" for name in licenses]
    files = {}
    for name in names:
        text = distribution.read_text(name)
        if text is None:
            raise NoVerdictError(
                f"this installation of mltune lacks {name} in its metadata; install it again"
            )
        files[name] = text.encode()
    files["WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: mltune {distribution.version}\n"
        f"Root-Is-Purelib: true\nTag: {_TAG}\n"
    ).encode()
    return files


def _record(contents: dict[str, bytes], own_name: str) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(content)))
    rows.writerow((own_name, "", ""))
    return text.getvalue().encode()


def _write_archive(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            member = zipfile.ZipInfo(name, _TIME)
            member.create_system = 3  # Unix, wherever it is packed
            member.external_attr = _REGULAR_FILE_0644
            archive.writestr(member, content)
