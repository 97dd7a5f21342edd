"""Base images for the tests, made from what this machine has: nothing can be pulled everywhere.

`write_busybox_base` makes one with a shell alone, `write_python_base` one with the Python that runs
the tests, moved to `/usr/local` as in the images that people use. The same machine writes the same
bytes twice. `import_base` gives them to an engine.
"""

import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import docker

DIGEST_LABEL = "mltune-test.base"
SEARCH_PATH = "/usr/local/bin:/usr/bin"
CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"

# Loaded by name while a program runs, so that ldd does not tell of them: name services, and what
# the wheels of torch and numpy need beside the C library.
LOADED_LATER = (
    "libdl.so.2", "libgcc_s.so.1", "libgomp.so.1", "libm.so.6", "libnss_dns.so.2",
    "libnss_files.so.2", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libstdc++.so.6",
    "libutil.so.1",
)  # fmt: skip
# Parts of the standard library that no build needs, by their names in its folder.
LEFT_OUT = {
    "__pycache__", "idlelib", "site-packages", "dist-packages", "test", "tests", "tkinter",
    "turtledemo",
}  # fmt: skip
EXTENSION_LEFT_OUT = re.compile(r"_tkinter|_test|_ctypes_test|_xx|xx")
TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
FOLDERS = {
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "root": 0o700,
    "proc": 0o555,
    "sys": 0o555,
    "dev": 0o755,
}
# Debian's own layout: a library may be asked for by either name.
MERGED = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}


class MissingPartError(Exception):
    """This machine lacks something that a base image is made from; the message says what."""


@dataclass(frozen=True)
class Entry:
    """One member of the archive: a file's bytes or place, a link's target, or else a folder."""

    mode: int = 0o755
    source: Path | None = None
    text: str | None = None
    target: str | None = None


class RootFilesystem:
    """The members of an archive by name, written sorted and without time or owner."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Add a member, and the folders above it."""
        for parent in list(PurePosixPath(name).parents)[:-1]:
            self.entries.setdefault(str(parent), Entry())
        self.entries[name] = entry

    def add_file(self, name: str, source: Path) -> None:
        executable = os.access(source, os.X_OK)
        self.add(name, Entry(0o755 if executable else 0o644, source=source))

    def write(self, archive: Path) -> None:
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, entry in sorted(self.entries.items()):
                member = tarfile.TarInfo(name)
                member.mode = entry.mode
                if entry.target is not None:
                    member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.target, 0o777
                    tar.addfile(member)
                elif entry.source is None and entry.text is None:
                    member.type = tarfile.DIRTYPE
                    tar.addfile(member)
                else:
                    content = (entry.text or "").encode()
                    if entry.source is not None:
                        content = entry.source.read_bytes()
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))


def busybox_root() -> RootFilesystem:
    """Return a root filesystem with a shell and its company."""
    busybox = shutil.which("busybox", path=f"{os.environ.get('PATH', '')}:/bin:/usr/bin")
    if busybox is None:
        raise MissingPartError("no busybox; its static build is in the package busybox-static")
    if libraries_of(Path(busybox)):
        raise MissingPartError(f"{busybox} needs libraries; install the package busybox-static")
    root = RootFilesystem()
    root.add_file("usr/bin/busybox", Path(busybox))
    for name, target in MERGED.items():
        root.add(name, Entry(target=target))
    for name in output_of(busybox, "--list").split():
        if name != "busybox":
            root.add(f"usr/bin/{name}", Entry(target="busybox"))
    for name, mode in FOLDERS.items():
        root.add(name, Entry(mode))
    for name, text in TEXTS.items():
        root.add(name, Entry(0o644, text=text))
    for name in ("usr/lib", "usr/lib64"):
        root.add(name, Entry())
    return root


def python_root() -> RootFilesystem:
    """Return a root filesystem with the Python of the tests, its libraries and certificates."""
    root = busybox_root()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    if not (library / "ensurepip").is_dir():
        raise MissingPartError(f"{library} has no ensurepip; the package python3-venv brings it")
    root.add_file(f"usr/local/bin/{version}", program)
    for name in ("python3", "python"):
        root.add(f"usr/local/bin/{name}", Entry(target=version))
    extensions = [program]
    for path in library_files(library):
        root.add_file(f"usr/local/lib/{version}/{path.relative_to(library)}", path)
        if path.suffix == ".so":
            extensions.append(path)
    root.add(f"usr/local/lib/{version}/site-packages", Entry())
    for name, path in shared_libraries(extensions).items():
        root.add_file(name, path)
    root.add_file(CA_BUNDLE, certificates())
    # What the machine trusts, its pip trusts: the pip of ensurepip brings a bundle of its own.
    root.add("etc/pip.conf", Entry(0o644, text=f"[global]\ncert = /{CA_BUNDLE}\n"))
    return root


def library_files(library: Path) -> Iterator[Path]:
    """Every file of the standard library that the image keeps."""
    for folder, names, files in os.walk(library):
        names[:] = [
            name for name in names if name not in LEFT_OUT and not name.startswith("config-")
        ]
        for name in files:
            path = Path(folder) / name
            if path.parent.name == "lib-dynload" and EXTENSION_LEFT_OUT.match(name):
                continue
            yield path


def shared_libraries(programs: list[Path]) -> dict[str, Path]:
    """Return what programs and extensions load, by its place in the image.

    What does not come from the system's own folders, such as `libpython`, goes beside the C
    library, where the loader looks without being told.
    """
    found = libraries_of(*programs)
    c_library = next((path for path in found if path.name == "libc.so.6"), None)
    if c_library is None:
        raise MissingPartError(f"{programs[0]} is not linked with the C library of this machine")
    later = [path for name in LOADED_LATER if (path := c_library.parent / name).exists()]
    found |= set(later) | libraries_of(*later)
    places = {}
    for path in found:
        top = path.parts[1]
        if top in MERGED:
            place = f"{MERGED[top]}/{'/'.join(path.parts[2:])}"
        elif path.is_relative_to("/usr/lib") or path.is_relative_to("/usr/lib64"):
            place = str(path.relative_to("/"))
        else:
            folder = str(c_library.parent.relative_to("/")).removeprefix("usr/")
            place = f"usr/{folder}/{path.name}"
        places[place] = path.resolve()
    return places


def libraries_of(*programs: Path) -> set[Path]:
    """Return what ldd tells of; nothing for a static program."""
    if not programs:
        return set()
    done = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True)
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.M)}


def certificates() -> Path:
    """Return the bundle of certificates that this machine trusts."""
    paths = (
        os.environ.get("SSL_CERT_FILE"),
        f"/{CA_BUNDLE}",
        ssl.get_default_verify_paths().cafile,
    )
    for path in paths:
        if path and Path(path).is_file():
            return Path(path)
    raise MissingPartError("no bundle of certificates; the package ca-certificates brings one")


def output_of(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def write_busybox_base(archive: Path) -> None:
    """Write the archive of the image with a shell alone: 2 MB."""
    busybox_root().write(archive)


def write_python_base(archive: Path) -> None:
    """Write the archive of the image with Python: some 80 MB."""
    python_root().write(archive)


def import_base(client: docker.APIClient, tag: str, archive: Path) -> str:
    """Import an archive as an image, labelled with the archive's digest; return its id.

    An image of that name with that label is taken as it is.
    """
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        present = client.inspect_image(tag)
        if (present["Config"].get("Labels") or {}).get(DIGEST_LABEL) == digest:
            return str(present["Id"])
    except docker.errors.ImageNotFound:
        pass
    repository, _, name = tag.rpartition(":")
    changes = [f"LABEL {DIGEST_LABEL}={digest}", f"ENV PATH={SEARCH_PATH}", 'CMD ["sh"]']
    answer = client.import_image_from_file(
        str(archive), repository=repository, tag=name, changes=changes
    )
    try:
        return str(client.inspect_image(tag)["Id"])
    except docker.errors.ImageNotFound as error:
        raise MissingPartError(f"the engine did not import {archive}: {answer}") from error
