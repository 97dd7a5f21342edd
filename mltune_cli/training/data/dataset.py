"""Tokenised rows in an Arrow memory map, cached by the digest of everything that made them."""

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mltune_cli.digests import file_digest, files_digest, json_digest
from mltune_cli.errors import UsageError, is_machine_failure
from mltune_cli.recipe.schema import DataSection
from mltune_cli.training.data.formats import Example, read_example
from mltune_cli.training.data.packing import pack_by_length
from mltune_cli.training.data.rendering import ExampleRenderer
from mltune_cli.training.data.sources import FileSource, HubSource
from mltune_cli.training.data.tokenising import Tokeniser

_BATCH_ROWS = 1024
_SCHEMA = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("is_target", pa.list_(pa.bool_()))],
)
_ROWS_FILE, _SUMMARY_FILE = "rows.arrow", "summary.json"
# Where each batch of the rows' file begins, in rows; which rows make a unit; what counts in each.
_ARRAYS = ("first_rows", "members", "starts", "target_counts")
_SEALED_FILES = (_ROWS_FILE, *(f"{name}.npy" for name in _ARRAYS), _SUMMARY_FILE)


@dataclass(frozen=True)
class DataSummary:
    """What tokenising a data set found; part of the manifest.

    Attributes:
        digest: content digest of the rows' files, whatever their tokens.
        rows_by_format: how many rows were told to be of which format.
        rows: rows that are trained on.
        cut_rows: rows longer than `data.max_length`.
        rows_without_targets: rows left out since nothing of them would count in the loss.
        tokens: tokens of the rows that are trained on.
        target_tokens: those that count in the loss.
    """

    digest: str
    rows_by_format: dict[str, int]
    rows: int
    cut_rows: int
    rows_without_targets: int
    tokens: int
    target_tokens: int


class TokenisedDataset:
    """Random access to tokenised rows, grouped into units: one row, or one pack of documents.

    Everything is read from memory maps, when it is first asked for: what it takes of memory does
    not grow with the number of rows.
    """

    def __init__(self, folder: Path) -> None:
        self.summary = DataSummary(**json.loads((folder / _SUMMARY_FILE).read_text()))
        # No threads: workers that load micro-batches are forks of a process that has read already.
        options = pa.ipc.IpcReadOptions(use_threads=False)
        source = pa.memory_map(str(folder / _ROWS_FILE))
        self._file = pa.ipc.open_file(source, options=options)
        self._batches: dict[int, _BatchViews] = {}
        first_rows, members, starts, target_counts = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _ARRAYS
        )
        self._first_rows, self._members, self._starts = first_rows, members, starts
        self.unit_target_counts: npt.NDArray[np.int64] = target_counts

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self._starts) - 1

    def documents(self, unit: int) -> list[int]:
        """Return the rows of one unit: one, or those packed together."""
        return [int(row) for row in self._members[self._starts[unit] : self._starts[unit + 1]]]

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return a row's token ids and target mask, each of shape (tokens,)."""
        batch = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        views = self._batches.get(batch)
        if views is None:
            views = self._batches[batch] = _views(self._file.get_batch(batch))
        local = index - int(self._first_rows[batch])
        start, end = int(views.offsets[local]), int(views.offsets[local + 1])
        # Eight flags a byte, the first in the lowest bit.
        bits = np.unpackbits(views.targets[start // 8 : -(-end // 8)], bitorder="little")
        mask = bits[start % 8 :][: end - start].view(np.bool_)
        return views.ids[start:end], mask


class _BatchViews(NamedTuple):
    """The buffers of one batch of rows, in the memory map."""

    offsets: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.uint8]


def _views(batch: pa.RecordBatch) -> _BatchViews:
    # Not `to_numpy`: pyarrow imports pandas for it, which takes longer than all the rest.
    _, offsets, _, ids = batch.column(0).buffers()
    *_, targets = batch.column(1).buffers()
    return _BatchViews(
        np.frombuffer(offsets, dtype=np.int32),
        np.frombuffer(ids, dtype=np.int32),
        np.frombuffer(targets, dtype=np.uint8),
    )


def cache_folder() -> Path:
    """Return where tokenised data is kept: `MLTUNE_CACHE`, or mltune in the user's cache."""
    if folder := os.environ.get("MLTUNE_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "mltune"


def prepare_dataset(
    source: FileSource | HubSource,
    section: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_digest: str,
) -> TokenisedDataset:
    """Tokenise a data set, or open what was tokenised before from the same content.

    Args:
        source: where the rows are.
        section: the recipe's `data` section.
        tokenizer: the model's tokenizer.
        tokenizer_digest: content digest of the tokenizer's files and template.

    Raises:
        UsageError: a row that cannot be used, or no row that can.
    """
    digest = source.digest()
    renderer = ExampleRenderer(tokenizer, section.loss_on == "all", section.chat_template_date)
    key = json_digest(
        {
            "code": _code_digest(),
            "rows": digest,
            # The same bytes are other rows, or none, under another suffix.
            "suffixes": [p.suffix for p in source.files] if isinstance(source, FileSource) else [],
            "tokenizer": tokenizer_digest,
            "settings": section.model_dump(
                exclude={"train", "validation", "revision", "subset", "loader_workers"}
            ),
        }
    ).removeprefix("sha256:")
    folder = cache_folder() / "tokenised" / key
    opened = _open_cached(folder)
    if opened is not None:
        return opened
    tokeniser = Tokeniser(tokenizer, section.max_length)
    examples = (read_example(row, section.format) for row in source.rows())
    batches = _tokenised_batches(examples, renderer, tokeniser)
    dataset = _build(folder, digest, section, batches)
    if source.digest() != digest:
        # The entry would be found under the digest of rows that it does not hold.
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(f"{source.name}: changed while it was read; start again")
    return dataset


@functools.cache
def _code_digest() -> str:
    """Return the digest of what turns rows into tokens: these modules and their packages."""
    folder = Path(__file__).parent
    packages = {name: version(name) for name in ("jinja2", "tokenizers", "transformers")}
    return json_digest([packages, files_digest(folder, sorted(folder.glob("*.py")))])


def _open_cached(folder: Path) -> TokenisedDataset | None:
    """Open a cache entry, or remove it where a crash or a full disk left it damaged."""
    if not folder.is_dir():
        return None
    try:
        seal = json.loads((folder / "seal.json").read_text())
        if seal == {name: file_digest(folder / name) for name in _SEALED_FILES}:
            return TokenisedDataset(folder)
    except (OSError, ValueError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


@dataclass
class _Batch:
    """Some tokenised rows on their way to the Arrow file."""

    formats: list[str]
    cut: int
    input_ids: list[list[int]]
    is_target: list[list[bool]]


def _tokenised_batches(
    examples: Iterator[Example], renderer: ExampleRenderer, tokeniser: Tokeniser
) -> Iterator[_Batch]:
    while chunk := list(islice(examples, _BATCH_ROWS)):
        rows = list(tokeniser.tokenise(renderer.render(chunk)))
        yield _Batch(
            [example.format for example in chunk],
            sum(row.was_cut for row in rows),
            [row.input_ids for row in rows if row.target_count],
            [row.is_target for row in rows if row.target_count],
        )


def _build(
    folder: Path, digest: str, section: DataSection, batches: Iterator[_Batch]
) -> TokenisedDataset:
    """Write a cache entry beside its final place, then move it there in one step."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    except OSError as error:
        if is_machine_failure(error):
            raise
        raise UsageError(
            f"{folder.parent}: the cache of tokenised data cannot be written: {error.strerror}; "
            "set MLTUNE_CACHE to a folder that can"
        ) from None
    try:
        _write_entry(draft, digest, section, batches)
        opened = TokenisedDataset(draft)  # the memory map holds on to the file, whatever its name
        with contextlib.suppress(OSError):
            # Where another process built the same content first, its entry is as good as ours.
            draft.rename(folder)
        return opened
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_entry(draft: Path, digest: str, section: DataSection, batches: Iterator[_Batch]) -> None:
    formats: Counter[str] = Counter()
    cut = 0
    lengths: list[int] = []
    targets: list[int] = []
    first_rows = [0]
    with pa.ipc.new_file(str(draft / _ROWS_FILE), _SCHEMA) as writer:
        for batch in batches:
            formats.update(batch.formats)
            cut += batch.cut
            lengths += map(len, batch.input_ids)
            targets += map(sum, batch.is_target)
            if batch.input_ids:
                columns = [
                    pa.array(batch.input_ids, _SCHEMA.field(0).type),
                    pa.array(batch.is_target, _SCHEMA.field(1).type),
                ]
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
                first_rows.append(len(lengths))
    if not lengths:
        raise UsageError(
            f"no row has a token that counts in the loss within data.max_length="
            f"{section.max_length}; raise it, or set data.loss_on=all"
        )
    length_array = np.array(lengths, dtype=np.int64)
    if section.packing is True:
        members, starts = pack_by_length(length_array, section.max_length)
    else:
        members, starts = np.arange(len(lengths)), np.arange(len(lengths) + 1)
    target_counts = np.add.reduceat(np.array(targets, dtype=np.int64)[members], starts[:-1])
    arrays = (np.array(first_rows, dtype=np.int64), members, starts, target_counts)
    for name, array in zip(_ARRAYS, arrays, strict=True):
        np.save(draft / f"{name}.npy", array, allow_pickle=False)
    summary = DataSummary(
        digest=digest,
        rows_by_format=dict(sorted(formats.items())),
        rows=len(lengths),
        cut_rows=cut,
        rows_without_targets=sum(formats.values()) - len(lengths),
        tokens=sum(lengths),
        target_tokens=sum(targets),
    )
    (draft / _SUMMARY_FILE).write_text(json.dumps(asdict(summary)))
    seal = {name: file_digest(draft / name) for name in _SEALED_FILES}
    (draft / "seal.json").write_text(json.dumps(seal))
