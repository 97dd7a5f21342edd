"""Where rows come from: a file, a folder of shards, the bundled data set, or a hub id.

Reading is streaming: a row at a time, with the place (file and line) that an error will name.
"""

import contextlib
import csv
import datetime
import decimal
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from mltune_cli.bundled import BUNDLED_PREFIX, bundled_data
from mltune_cli.digests import file_digest, json_digest
from mltune_cli.errors import RecipeValueError, UsageError
from mltune_cli.recipe.layers import DATA_SUFFIXES

Fields = dict[str, Any]
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class SourceRow:
    """A row's fields as they stand in the file, and where that is."""

    place: str
    fields: Fields


@dataclass(frozen=True)
class FileSource:
    """Rows in local files, read in the order of their names."""

    name: str
    files: tuple[Path, ...]

    def digest(self) -> str:
        """Return the digest of the files' bytes, in order; their names do not count.

        Raises:
            UsageError: a file that cannot be read.
        """
        digests = []
        for path in self.files:
            with _explained(path):
                digests.append(file_digest(path))
        return digests[0] if len(digests) == 1 else json_digest(digests)

    def rows(self) -> Iterator[SourceRow]:
        """Read every row.

        Raises:
            UsageError: a file that is empty or unreadable, a line that is no row.
        """
        for path in self.files:
            count = 0
            with _explained(path):
                for row in _READERS[path.suffix](path):
                    count += 1
                    yield row
            if not count:
                raise UsageError(f"{path}: is empty; a data file needs at least one row")


@dataclass(frozen=True)
class HubSource:
    """Rows of a data set on the hub, through the `datasets` library."""

    name: str
    revision: str | None
    split: str
    subset: str | None = None

    def _load(self) -> Any:
        from datasets import load_dataset

        try:
            loaded = load_dataset(self.name, self.subset, revision=self.revision, split=self.split)
            # Pictures and sounds are no text; decoding them needs packages that nothing else does.
            media = [name for name, kind in loaded.features.items() if isinstance(kind, _media())]
            return loaded.remove_columns(media)
        except Exception as error:  # noqa: BLE001
            # `datasets` raises a dozen types, from ValueError to ConnectionError, for what a user
            # sees as one thing: the name does not lead to rows.
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(
                f"{self.name}: is neither a file or folder here nor a hub data set with a split "
                f"{self.split} that can be loaded: {first_line}"
            ) from None

    def digest(self) -> str:
        """Return the digest of the rows' contents: a hub's files may change under one name."""
        state = xxhash.xxh3_128()
        for fields in self._load():
            # Dates, decimals and NaN occur in columns that training ignores.
            text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=_spelled)
            state.update(text.encode() + b"\n")
        return "xxh3_128:" + state.hexdigest()

    def rows(self) -> Iterator[SourceRow]:
        """Read every row.

        Raises:
            UsageError: the data set cannot be loaded.
        """
        for number, fields in enumerate(self._load(), start=1):
            yield SourceRow(f"{self.name} ({self.split}) row {number}", fields)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _media() -> tuple[type, ...]:
    from datasets import Audio, Image, Video

    return (Audio, Image, Video)


def _spelled(value: Any) -> str:
    """Return the one spelling of a value that JSON does not know."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    return type(value).__name__


def find_source(
    key: str, name: str, revision: str | None, subset: str | None = None
) -> FileSource | HubSource:
    """Tell what a recipe's `data.train` or `data.validation` names.

    Args:
        key: the recipe key, for the error and for the hub split it implies.
        name: a path, a bundled name, or a hub id, optionally `org/name:split`.
        revision: branch, tag or commit of a hub data set.
        subset: which of its subsets, where it has several.

    Raises:
        RecipeValueError: the name leads nowhere, or to a folder without data files.
    """
    if name.startswith(BUNDLED_PREFIX):
        try:
            path = bundled_data(name)
        except UsageError as error:
            raise RecipeValueError(key, error.message) from None
        return FileSource(str(path), (path,))
    path = Path(name)
    if os.path.isdir(name):  # noqa: PTH112 - unlike Path's, False for a name no file can have
        everything = _files_below(path)
        files = tuple(p for p in everything if _is_shard(p, path))
        packed = [p for p in everything if p.suffix in _COMPRESSED]
        if packed:
            raise RecipeValueError(
                key, f"{packed[0]}: compressed shards are not read; unpack them, or move them away"
            )
        if not files:
            raise RecipeValueError(
                key, f"{name}: the folder holds no {', '.join(DATA_SUFFIXES)} files"
            )
        return FileSource(name, files)
    if os.path.isfile(name):  # noqa: PTH113 - likewise
        if path.suffix not in DATA_SUFFIXES:
            raise RecipeValueError(
                key,
                f"{name}: {path.suffix or 'no suffix'} is not one of {', '.join(DATA_SUFFIXES)}",
            )
        return FileSource(name, (path,))
    hub_id, _, split = name.partition(":")
    if path.suffix in DATA_SUFFIXES or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", hub_id):
        raise RecipeValueError(key, f"{name}: no such file")
    default_split = "train" if key == "data.train" else "validation"
    return HubSource(hub_id, revision, split or default_split, subset)


def _files_below(folder: Path) -> list[Path]:
    """Return every file below a folder, behind links as well, sorted.

    Raises:
        UsageError: a folder cannot be read: its rows would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}")

    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()  # a link that leads back up
            continue
        seen.add(real)
        found += [Path(root) / name for name in names]
    return sorted(found)


def _is_shard(path: Path, folder: Path) -> bool:
    # A hidden file is an editor's or a file system's copy of a shard, whose rows would count twice;
    # a folder may be called `train.parquet`, and its shards are found below it.
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in DATA_SUFFIXES and not hidden and path.is_file()


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}:{number}: not UTF-8 text (byte {error.start} of the line); "
                    "save the file as UTF-8"
                ) from None


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    for number, line in _decoded_lines(path):
        if line.strip():
            place = f"{path}:{number}"
            yield SourceRow(place, _object(place, _parsed(place, line.rstrip("\r\n"))))


def _json_rows(path: Path) -> Iterator[SourceRow]:
    text = "".join(line for _, line in _decoded_lines(path))
    start = _after_space(text, 0)
    first_line = text.count("\n", 0, start) + 1
    if text.startswith("[", start):
        yield from _listed_rows(path, text, start + 1)
    elif text.startswith("{", start):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data" and error.lineno > first_line:
                _parsed(str(path), text)  # one object over several lines: names the line
        except (ValueError, RecursionError):
            pass
        else:
            yield SourceRow(f"{path}:{first_line}", value)
            return
        # One object a line under the name .json is common.
        yield from _jsonl_rows(path)
    elif start < len(text):
        _parsed(str(path), text)
        raise UsageError(f"{path}: must hold a list of objects, or one object a line")


def _listed_rows(path: Path, text: str, position: int) -> Iterator[SourceRow]:
    """Read the elements of a list one at a time, so that each is known by its line."""
    decode = json.JSONDecoder().raw_decode
    number, line, counted = 0, 1, 0
    position = _after_space(text, position)
    while number or not text.startswith("]", position):
        number += 1
        line += text.count("\n", counted, position)
        counted = position
        place = f"{path}:{line} (row {number})"
        try:
            value, end = decode(text, position)
        except RecursionError:
            raise UsageError(f"{place}: invalid JSON: nested too deeply") from None
        except ValueError:
            _parsed(str(path), text)  # the parser of the whole knows the line
            raise
        yield SourceRow(place, _object(place, value))
        position = _after_space(text, end)
        if not text.startswith(",", position):
            break
        position = _after_space(text, position + 1)
    if not (text.startswith("]", position) and _after_space(text, position + 1) == len(text)):
        _parsed(str(path), text)


def _after_space(text: str, position: int) -> int:
    space = _JSON_SPACE.match(text, position)
    return space.end() if space else position


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    # Decoded by line first, so that a bad byte is reported with its line.
    lines = (line for _, line in _decoded_lines(path))
    csv.field_size_limit(1 << 30)
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        place = f"{path}:{reader.line_num + 1}"  # a row may reach over several lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{place}: not valid CSV: {error}") from None
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = cells
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise UsageError(f"{place}: the header names {', '.join(twice)} more than once")
            continue
        if len(cells) != len(header):
            raise UsageError(
                f"{place}: the header names {len(header)} cells, and this row has {len(cells)}; "
                "quote a cell that holds a comma or a line break"
            )
        yield SourceRow(place, dict(zip(header, cells, strict=True)))


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    # Half of what the doctor waits for, where rows of other kinds are read.
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield SourceRow(f"{path} row {number}", fields)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text after row {number}: {error.reason}") from None
    except ArrowException as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(f"{path}: not a readable Parquet file: {first_line}") from None


_READERS = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if "\n" in text.strip():
            line = text.count("\n", 0, error.pos) + 1
            raise UsageError(f"{place}:{line}: invalid JSON: {error.msg}") from None
        raise UsageError(f"{place}: invalid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise UsageError(f"{place}: invalid JSON: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{place}: invalid JSON: {error}") from None


def _object(place: str, value: Any) -> Fields:
    if not isinstance(value, dict):
        raise UsageError(f"{place}: a row must be a JSON object, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
