"""Which files of a project the COPY and ADD of its Dockerfile mean, and which are never sent."""

import fnmatch
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.errors import UsageError
from mltune_cli.imaging.archive import Content
from mltune_cli.imaging.dockerfile import Copied
from mltune_cli.imaging.ignore_rules import IGNORE_FILE, IgnoreRules, glob_pattern

# What mltune brings stands under these names; what an earlier build by hand left there does not
# get in between.
_RESERVED = tuple(map(glob_pattern, ("build/packages", "build/mltune-*.whl")))
# Never sent, wherever they stand and whoever names them.
_SECRET_NAMES = (
    ".git", ".env", ".env.*", ".netrc", ".pypirc", ".ssh", ".aws", ".gnupg", ".git-credentials",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519",
)  # fmt: skip
# Not sent with a folder or by a pattern; a certificate may be named by itself.
_KEY_NAMES = ("*.pem", "*.key", "*.p12", "*.pfx")
# Results, which are large and change with every run; they may be named by themselves, too.
_RESULTS = ("repro_output", "runs")
_LEFT_OVER = ("__pycache__", "*.pyc", ".DS_Store")
_GLOB = re.compile(r"[*?\[]")
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


@dataclass(frozen=True)
class CopySources:
    """What the sources of COPY are looked for in.

    Attributes:
        dockerfile: the name of the Dockerfile, for the messages.
        project: the folder that the sources are relative to.
        brought: what mltune brings itself, by its name in the context.
        rules: of the project's .dockerignore, which says nothing about what is brought.
    """

    dockerfile: str
    project: Path
    brought: Mapping[str, Content]
    rules: IgnoreRules

    def files_of(self, copied: Copied, source: str) -> dict[str, Content]:
        """Return the files that one source means, by their names in the context.

        Raises:
            UsageError: it means none, or one that must not be sent; with `FILE:LINE`.
        """
        place = f"{self.dockerfile}:{copied.line}: {copied.instruction} {source}"
        # COPY has no `**`: two stars are one to it.
        clean = re.sub(r"\*+", "*", posixpath.normpath(source.lstrip("/") or "."))
        pattern = self._pattern(clean, place)
        is_named = clean != "." and not _GLOB.search(clean)
        if is_named and any(_is_like(part, _SECRET_NAMES) for part in clean.split("/")):
            raise UsageError(f"{place}: holds secrets, which anybody can read in an image")
        found: dict[str, Content] = {
            name: content
            for name, content in self.brought.items()
            if clean == "." or _matches_or_below(pattern, name)
        }
        roots = self._roots(clean, place)
        is_ignored = False
        for root in roots:
            for file, path in self._walk(root, place, frozenset()):
                if _is_reserved(file):
                    continue
                if self.rules.ignores(file):
                    is_ignored = True
                elif self._may_be_sent(file, root if is_named else "", path, place):
                    found[file] = path
        if not found:
            why = f"there is no such file in {self.project}"
            if roots:
                why = f"is left out by {IGNORE_FILE}" if is_ignored else "holds nothing to send"
            raise UsageError(f"{place}: {why}")
        return found

    def _pattern(self, clean: str, place: str) -> re.Pattern[str]:
        if clean.split("/")[0] == "..":
            raise UsageError(
                f"{place}: lies outside of {self.project}, which is all that the builder gets"
            )
        try:
            return glob_pattern(clean)
        except re.error:
            raise UsageError(f"{place}: is no pattern") from None

    def _roots(self, clean: str, place: str) -> list[str]:
        """Return the files and folders of the project that a source names.

        Results at the top are found by their name alone, not by a pattern.
        """
        first, *more = ("*" if clean == "." else clean).split("/")
        names = [first]
        if _GLOB.search(first):
            pattern = glob_pattern(first)
            top = (path.name for path in _entries(self.project, place))
            names = [name for name in top if pattern.fullmatch(name) and name not in _RESULTS]
        for part in more:
            names = [f"{name}/{entry}" for name in names for entry in self._like(part, name, place)]
        return [name for name in names if _is_there(self.project / name)]

    def _like(self, part: str, folder: str, place: str) -> list[str]:
        if not _GLOB.search(part):
            return [part]
        if not (self.project / folder).is_dir():
            return []
        pattern = glob_pattern(part)
        names = (path.name for path in _entries(self.project / folder, place))
        return [name for name in names if pattern.fullmatch(name)]

    def _walk(self, name: str, place: str, above: frozenset[Path]) -> Iterator[tuple[str, Path]]:
        """Yield the files below a name, which a link within the project may lead to."""
        path = self.project / name
        last = name.rpartition("/")[2]
        if _is_like(last, (*_SECRET_NAMES, *_LEFT_OVER)):
            return
        if self.rules.ignores(name) and (path.is_symlink() or not path.is_dir()):
            yield name, path  # the one who asks leaves it out, and needs to know that it is there
            return
        resolved = path.resolve()
        if not resolved.is_relative_to(self.project.resolve()) or not resolved.exists():
            raise UsageError(
                f"{place}: {name} is a symbolic link that leads out of {self.project}; put what it "
                f"points to in its place, or leave it out in {IGNORE_FILE}"
            )
        if path.is_dir():
            if resolved in above:
                raise UsageError(f"{place}: {name} is a symbolic link to a folder around it")
            if self.rules.ignores(name) and not self.rules.has_exceptions:
                yield name, path
                return
            for entry in _entries(path, place):
                yield from self._walk(f"{name}/{entry.name}", place, above | {resolved})
        elif path.is_file():
            yield name, path
        # Sockets, pipes and devices are nothing that an image can hold.

    def _may_be_sent(self, file: str, named: str, path: Path, place: str) -> bool:
        """Decide on one file; `named` is what the Dockerfile names in full, or empty."""
        if file == IGNORE_FILE:
            return False
        if not _is_like(file.rpartition("/")[2], _KEY_NAMES):
            return True
        if file == named and _holds_private_key(path, place):
            raise UsageError(f"{place}: is a private key, which anybody can read in an image")
        return file == named


def _matches_or_below(pattern: re.Pattern[str], name: str) -> bool:
    parts = name.split("/")
    return any(pattern.fullmatch("/".join(parts[:count])) for count in range(1, len(parts) + 1))


def _is_reserved(file: str) -> bool:
    return any(_matches_or_below(pattern, file) for pattern in _RESERVED)


def _entries(folder: Path, place: str) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{place}: {folder} cannot be read: {error.strerror}") from None


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _is_like(part: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns)


def _holds_private_key(path: Path, place: str) -> bool:
    try:
        return PRIVATE_KEY.search(path.read_bytes()) is not None
    except OSError as error:
        raise UsageError(f"{place}: cannot be read: {error.strerror}") from None
