"""What is sent to the builder: an explicit list, gathered from what the Dockerfile copies."""

import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from mltune_cli.errors import UsageError
from mltune_cli.imaging.archive import BuildContext, Content
from mltune_cli.imaging.copy_sources import PRIVATE_KEY, CopySources
from mltune_cli.imaging.dockerfile import parse_dockerfile, read_dockerfile
from mltune_cli.imaging.ignore_rules import read_rules
from mltune_cli.imaging.locks import (
    LOCK_NAMES,
    Variant,
    missing_from_wheelhouse,
    read_lock,
    wheels_of_lock,
)

PACKAGES = "build/packages"
CA_BUNDLE = "ca-bundle.crt"
_OWN_DOCKERFILE = ".mltune.Dockerfile"
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)
# A user alone is often a token; with ssh it is only a name.
_CREDENTIALS = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]*:[^/\s@]*@|https?://[^/\s@]+@", re.I)
_SECRET_WORDS = re.compile(r"TOKEN|PASSW|PASSPHRASE|SECRET|CREDENTIAL|KEYS?(?:$|_)", re.I)
_NAMED_MISSING = 3


def gather_context(
    dockerfile: Path | str,
    *,
    project: Path,
    variant: Variant,
    wheel: Path,
    lock: Path,
    wheelhouse: Path | None = None,
    ca_bundle: Path | None = None,
    build_args: Mapping[str, str] | None = None,
) -> BuildContext:
    """Gather what a Dockerfile copies, and nothing else.

    Below `build/` stands what mltune brings: `packages/` with the lock, the wheels that the lock
    names and the CA bundle, and mltune's own wheel. Everything else comes from the project, without
    what its .dockerignore leaves out, and never with version control or secrets. A symbolic link is
    followed where it stays within the project and refused where it leads out.

    Args:
        dockerfile: the user's file, or the text of a rendered one.
        project: the folder that COPY is relative to.
        variant: which packages the lock holds.
        wheel: of mltune.
        lock: of the variant.
        wheelhouse: a folder with the wheels of the lock; None to take them from an index.
        ca_bundle: certificates to trust while packages are fetched.
        build_args: the arguments that the build is going to get.

    Raises:
        UsageError: something that is copied is missing, ignored, secret, outside of the project or
            cannot be read; the wheelhouse lacks wheels; the CA bundle is none.
    """
    if isinstance(dockerfile, Path):
        read = read_dockerfile(dockerfile, build_args)
    else:
        read = parse_dockerfile(dockerfile, build_args=build_args)
    brought = _brought_files(variant, wheel, lock, wheelhouse, ca_bundle)
    sources = CopySources(read.name, project, brought, read_rules(project))
    files: dict[str, Content] = {}
    for copied in read.copied:
        for source in copied.sources:
            files |= sources.files_of(copied, source)
    name = _dockerfile_name(dockerfile, project, files)
    files[name] = read.text.encode()
    return BuildContext(dict(sorted(files.items())), name)


def _dockerfile_name(dockerfile: Path | str, project: Path, files: Mapping[str, Content]) -> str:
    """Return a name that takes no place of a file that is copied."""
    if isinstance(dockerfile, Path):
        place, root = dockerfile.absolute(), project.absolute()
        if place.is_relative_to(root):
            return place.relative_to(root).as_posix()
    return _OWN_DOCKERFILE if "Dockerfile" in files else "Dockerfile"


def _brought_files(
    variant: Variant, wheel: Path, lock: Path, wheelhouse: Path | None, ca_bundle: Path | None
) -> dict[str, Content]:
    text = read_lock(lock)
    brought: dict[str, Content] = {
        f"build/{wheel.name}": wheel,
        f"{PACKAGES}/{LOCK_NAMES[variant]}": text.encode(),
    }
    if wheelhouse is not None:
        missing = missing_from_wheelhouse(text, wheelhouse)
        if missing:
            more = len(missing) - _NAMED_MISSING
            raise UsageError(
                f"--wheelhouse {wheelhouse}: lacks {', '.join(missing[:_NAMED_MISSING])}"
                + (f" and {more} more" if more > 0 else "")
                + f"; fill it with pip download --require-hashes --no-deps --dest {wheelhouse} "
                f"--requirement {lock}"
            )
        for path in wheels_of_lock(text, wheelhouse):
            brought[f"{PACKAGES}/wheelhouse/{path.name}"] = path
    if ca_bundle is not None:
        brought[f"{PACKAGES}/{CA_BUNDLE}"] = _read_ca_bundle(ca_bundle)
    return brought


def _read_ca_bundle(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--ca-bundle {path}: cannot be read: {error.strerror}") from None
    if PRIVATE_KEY.search(content):
        raise UsageError(f"--ca-bundle {path}: holds a private key, which no image may see")
    # Comments between the certificates may hold anything, such as names with accents.
    certificates = b"\n".join(_CERTIFICATE.findall(content)).decode("ascii", errors="replace")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError):
        raise UsageError(f"--ca-bundle {path}: holds no certificate in PEM form") from None
    return content


def refuse_secrets(build_args: Mapping[str, str]) -> None:
    """Refuse build arguments that hold a secret: they stay readable in the image's history.

    Raises:
        UsageError: a value is an address with a user or a password, or a name tells of a secret.
    """
    for name, value in build_args.items():
        remedy = "anybody can read it in the image's history; bring the packages with --wheelhouse"
        if _CREDENTIALS.search(value):
            raise UsageError(f"--build-arg {name}: holds a user or a password; {remedy}")
        if value and _SECRET_WORDS.search(name):
            raise UsageError(f"--build-arg {name}: is a secret by its name; {remedy}")
