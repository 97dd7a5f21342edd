"""Tokenised rows: what was written is read back, and the cache never answers for other content."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from mltune_cli.digests import file_digest
from mltune_cli.errors import UsageError
from mltune_cli.recipe.schema import DataSection
from mltune_cli.training.data.dataset import TokenisedDataset, cache_folder, prepare_dataset
from mltune_cli.training.data.formats import read_example
from mltune_cli.training.data.rendering import ExampleRenderer
from mltune_cli.training.data.sources import FileSource, SourceRow
from mltune_cli.training.data.tokenising import TokenisedRow, Tokeniser

Prepared = Callable[..., TokenisedDataset]

ROWS: list[dict[str, Any]] = [
    {"question": "Where is Åsk?", "answer": "North of Hest."},
    {"prompt": "Question: how far?\nAnswer:", "completion": " 36 miles."},
    {"text": "Once there was a harbour, and it was called Tidegate."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
]
FILES = (
    "rows.arrow", "first_rows.npy", "members.npy", "starts.npy", "target_counts.npy",
    "summary.json", "seal.json",
)  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare(
    path: Path, tokenizer: PreTrainedTokenizerBase, digest: str = "tiny", **settings_: Any
) -> TokenisedDataset:
    source = FileSource(str(path), (path,))
    return prepare_dataset(source, DataSection(**settings_), tokenizer, digest)


def entries(cache: Path) -> list[Path]:
    """The finished entries; nothing else may lie beside them."""
    found = sorted(cache.iterdir()) if cache.is_dir() else []
    assert not [path for path in found if path.name.startswith(".")]
    return found


def contents(dataset: TokenisedDataset) -> list[tuple[list[int], list[bool]]]:
    rows = sorted(row for unit in range(len(dataset)) for row in dataset.documents(unit))
    assert rows == list(range(dataset.summary.rows))
    return [(ids.tolist(), mask.tolist()) for ids, mask in map(dataset.row, rows)]


def fresh(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_length: int = 512
) -> list[TokenisedRow]:
    """The same rows, tokenised one by one without any file between."""
    renderer = ExampleRenderer(tokenizer, False, "2026-01-01")
    tokeniser = Tokeniser(tokenizer, max_length)
    return [
        next(tokeniser.tokenise(renderer.render([read_example(SourceRow("x:1", row), "auto")])))
        for row in rows
    ]


def many_rows(count: int) -> list[dict[str, Any]]:
    """Rows of many lengths, each unlike the others."""
    return [
        {"prompt": f"{number} ", "completion": "ab " * (number * 7 % 13 + 1)}
        for number in range(count)
    ]


# What is written is read


@pytest.mark.parametrize("packing", [False, True])
def test_any_row_of_several_record_batches_is_read_as_it_was_written(
    prepared: Prepared, tokenizer: PreTrainedTokenizerBase, packing: bool
) -> None:
    rows = many_rows(2500)
    dataset = prepared(rows, packing=packing, max_length=64)
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    expected = fresh(tokenizer, rows)
    for index in [*order, 0, 1023, 1024, 2047, 2048, 2499]:
        ids, mask = dataset.row(index)
        assert ids.tolist() == expected[index].input_ids
        assert mask.tolist() == expected[index].is_target
        assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize("packing", [False, True])
def test_units_hold_every_row_once_and_know_their_targets(
    prepared: Prepared, packing: bool
) -> None:
    dataset = prepared(many_rows(1500), packing=packing, max_length=64)
    units = [dataset.documents(unit) for unit in range(len(dataset))]
    assert sorted(row for unit in units for row in unit) == list(range(1500))
    if not packing:
        assert units == [[row] for row in range(1500)]
    assert (len(dataset) < 1500) == packing
    assert all(sum(len(dataset.row(row)[0]) for row in unit) <= 64 for unit in units)
    counts = [sum(int(dataset.row(row)[1].sum()) for row in unit) for unit in units]
    assert dataset.unit_target_counts.tolist() == counts


def test_the_summary_counts_what_was_found(
    prepared: Prepared, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    dataset = prepared(ROWS)
    expected = fresh(tokenizer, ROWS)
    assert dataset.summary.rows_by_format == {
        "messages": 1, "prompt_completion": 1, "question_answer": 1, "text": 1,
    }  # fmt: skip
    assert dataset.summary.digest == file_digest(tmp_path / "prepared.jsonl")
    assert (dataset.summary.rows, dataset.summary.cut_rows) == (4, 0)
    assert dataset.summary.rows_without_targets == 0
    assert dataset.summary.tokens == sum(len(row.input_ids) for row in expected)
    assert dataset.summary.target_tokens == sum(row.target_count for row in expected)


def test_cut_rows_are_counted_and_rows_without_targets_left_out(
    prepared: Prepared, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A row whose answer lies behind the cut has nothing to learn; its neighbours stay."""
    hopeless = {"prompt": "very " * 30, "completion": "never seen"}
    half_seen = {"prompt": "a", "completion": "b " * 30}
    dataset = prepared([ROWS[1], hopeless, half_seen, hopeless, ROWS[3]], max_length=20)
    assert dataset.summary.rows == len(dataset) == 3
    assert dataset.summary.rows_without_targets == 2
    assert dataset.summary.rows_by_format == {"messages": 1, "prompt_completion": 4}
    kept = fresh(tokenizer, [ROWS[1], half_seen, ROWS[3]], max_length=20)
    assert dataset.summary.cut_rows == 2 + sum(row.was_cut for row in kept)
    assert contents(dataset) == [(row.input_ids, row.is_target) for row in kept]


@pytest.mark.parametrize("packing", [False, True])
def test_no_usable_row_at_all_is_a_sentence_and_leaves_nothing(
    prepared: Prepared, cache: Path, packing: bool
) -> None:
    with pytest.raises(UsageError) as raised:
        prepared([{"prompt": "very " * 30, "completion": "x"}] * 3, max_length=8, packing=packing)
    assert raised.value.message == (
        "no row has a token that counts in the loss within data.max_length=8; raise it, or set "
        "data.loss_on=all"
    )
    assert entries(cache) == []


def test_a_bad_row_after_good_batches_leaves_nothing(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "rows.jsonl", [*many_rows(1100), {"id": 1}])
    with pytest.raises(UsageError, match=r"rows\.jsonl:1101: no usable fields: has id"):
        prepare(path, tokenizer)
    assert entries(cache) == []


# The cache answers for the same content


def test_the_same_content_under_another_name_and_time_is_not_tokenised_again(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = prepare(write(tmp_path / "one.jsonl"), tokenizer)
    (entry,) = entries(cache)
    written = {name: (entry / name).stat() for name in FILES}
    copy = write(tmp_path / "elsewhere" / "two.jsonl")
    os.utime(copy, (1, 1))
    second = prepare(copy, tokenizer)
    assert entries(cache) == [entry]
    for name, before in written.items():
        after = (entry / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert contents(first) == contents(second)
    assert first.summary == second.summary


def test_names_in_the_recipe_do_not_count_but_settings_do(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[1:2])
    prepare(path, tokenizer)
    others = {"train": "a.jsonl", "validation": "b.jsonl", "revision": "main", "subset": "main"}
    prepare(path, tokenizer, **others, loader_workers=2)
    assert len(entries(cache)) == 1
    changes: list[dict[str, Any]] = [
        {"format": "prompt_completion"},
        {"max_length": 511},
        {"packing": True},
        {"loss_on": "all"},
        {"chat_template_date": "2026-01-02"},
    ]
    for number, change in enumerate(changes, start=2):
        prepare(path, tokenizer, **change)
        assert len(entries(cache)) == number, change
    named = {key for change in changes for key in change}
    assert named == set(DataSection.model_fields) - set(others) - {"loader_workers"}


def test_other_content_and_another_tokenizer_are_other_entries(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "rows.jsonl")
    before = contents(prepare(path, tokenizer))
    stamp = path.stat()
    path.write_bytes(path.read_bytes().replace(b"36 miles", b"63 miles"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert contents(prepare(path, tokenizer)) != before
    assert len(entries(cache)) == 2
    prepare(path, tokenizer, digest="another")
    assert len(entries(cache)) == 3


def test_the_same_bytes_under_another_suffix_are_read_anew(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A list is no row of a .jsonl file, also when the cache knows it from a .json file."""
    for name in ("rows.json", "rows.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS))
    prepare(tmp_path / "rows.json", tokenizer)
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: a row must be a JSON object"):
        prepare(tmp_path / "rows.jsonl", tokenizer)


def test_shards_are_the_same_data_under_any_names_in_the_same_order(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    one, two = write(tmp_path / "1.jsonl", ROWS[:2]), write(tmp_path / "2.jsonl", ROWS[2:])
    seven, eight = write(tmp_path / "7.jsonl", ROWS[:2]), write(tmp_path / "8.jsonl", ROWS[2:])
    prepared = [
        prepare_dataset(FileSource("x", files), DataSection(), tokenizer, "tiny")
        for files in [(one, two), (seven, eight), (two, one)]
    ]
    assert contents(prepared[0]) == contents(prepared[1])
    assert contents(prepared[2]) == contents(prepared[0])[2:] + contents(prepared[0])[:2]
    assert len(entries(cache)) == 2


def test_nothing_of_this_machine_is_in_an_entry(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    prepare(write(tmp_path / "rows.jsonl"), tokenizer)
    (entry,) = entries(cache)
    for name in FILES:
        assert str(tmp_path).encode() not in (entry / name).read_bytes()


# A damaged entry is built again, and never used


@pytest.fixture
def damaged(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Callable[[Path], None]], None]:
    """Plant a fault in a finished entry, and require the right rows and a whole entry after it."""
    path = write(tmp_path / "rows.jsonl")
    good = contents(prepare(path, tokenizer))
    (entry,) = entries(cache)
    spare = tmp_path / "spare"
    shutil.copytree(entry, spare)

    def check(plant: Callable[[Path], None]) -> None:
        shutil.rmtree(entry)
        shutil.copytree(spare, entry)
        plant(entry)
        dataset = prepare(path, tokenizer)
        assert contents(dataset) == good
        assert dataset.summary == json_summary(spare)
        assert entries(cache) == [entry]
        seal = json.loads((entry / "seal.json").read_text())
        assert seal == {name: file_digest(entry / name) for name in FILES[:-1]}

    def json_summary(folder: Path) -> Any:
        return TokenisedDataset(folder).summary

    return check


Damaged = Callable[[Callable[[Path], None]], None]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.99])
def test_a_truncated_entry_is_built_again(damaged: Damaged, name: str, kept: float) -> None:
    def truncate(entry: Path) -> None:
        raw = (entry / name).read_bytes()
        (entry / name).write_bytes(raw[: int(kept * len(raw)) if kept < 1 else kept])

    damaged(truncate)


@pytest.mark.parametrize("name", FILES)
def test_an_entry_that_lacks_a_file_is_built_again(damaged: Damaged, name: str) -> None:
    damaged(lambda entry: (entry / name).unlink())


@pytest.mark.parametrize("seal", ["{}", "[]", "null", "3", '{"rows.arrow": 1}', "\xff"])
def test_a_seal_that_seals_nothing_is_not_believed(damaged: Damaged, seal: str) -> None:
    def plant(entry: Path) -> None:
        raw = bytearray((entry / "rows.arrow").read_bytes())
        raw[len(raw) // 2] ^= 1
        (entry / "rows.arrow").write_bytes(raw)
        (entry / "seal.json").write_text(seal, "latin-1")

    damaged(plant)


@given(st.sampled_from(FILES[:-1]), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_an_entry_with_one_flipped_bit_is_built_again(
    damaged: Damaged, name: str, where: float, bit: int
) -> None:
    def flip(entry: Path) -> None:
        raw = bytearray((entry / name).read_bytes())
        raw[int(where * len(raw))] ^= 1 << bit
        (entry / name).write_bytes(raw)

    damaged(flip)


def test_an_empty_folder_in_the_place_of_an_entry_is_filled(damaged: Damaged) -> None:
    def empty(entry: Path) -> None:
        shutil.rmtree(entry)
        entry.mkdir()

    damaged(empty)


# Places that cannot be written


@pytest.mark.parametrize("below", ["file", "file/deeper", "/proc/none"])
def test_a_cache_that_cannot_be_written_is_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    below: str,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLTUNE_CACHE", str(tmp_path / below))
    with pytest.raises(UsageError) as raised:
        prepare(write(tmp_path / "rows.jsonl"), tokenizer)
    assert raised.value.message.startswith(
        f"{tmp_path / below / 'tokenised'}: the cache of tokenised data cannot be written: "
    )
    assert raised.value.message.endswith("set MLTUNE_CACHE to a folder that can")


def test_an_entry_that_cannot_be_put_in_its_place_does_not_stop_training(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "rows.jsonl")
    good = contents(prepare(path, tokenizer))
    (entry,) = entries(cache)
    shutil.rmtree(entry)
    entry.write_text("in the way")
    assert contents(prepare(path, tokenizer)) == good
    assert entries(cache) == [entry]


def test_a_data_file_that_cannot_be_read_is_a_sentence(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"folder\.jsonl: cannot be read: "):
        prepare(tmp_path / "folder.jsonl", tokenizer)
    assert entries(cache) == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTUNE_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/a")
    monkeypatch.setenv("MLTUNE_CACHE", "")
    assert cache_folder() == Path("/b/mltune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/c/.cache/mltune")


# Several processes, other environments, sudden death

CHILD = """
import hashlib, json, os, sys
from pathlib import Path
from transformers import AutoTokenizer
from mltune_cli.bundled import bundled_model
from mltune_cli.recipe.schema import DataSection
from mltune_cli.training.data.dataset import prepare_dataset
from mltune_cli.training.data.sources import find_source

tokenizer = AutoTokenizer.from_pretrained(bundled_model("mltune/tiny"), local_files_only=True)
print("ready", flush=True)
for line in sys.stdin:
    name, os.environ["MLTUNE_CACHE"] = json.loads(line)
    source = find_source("data.train", name, None)
    dataset = prepare_dataset(source, DataSection(packing=True), tokenizer, "tiny")
    state = hashlib.sha256()
    for unit in range(len(dataset)):
        state.update(str(dataset.documents(unit)).encode())
        for row in dataset.documents(unit):
            for array in dataset.row(row):
                state.update(array.tobytes())
    print(json.dumps([dataset.summary.rows, state.hexdigest()]), flush=True)
"""


class Child:
    """Another process that tokenises what it is told to."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, path: Path, cache: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(path), str(cache.parent)]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def children() -> Iterator[tuple[Child, Child]]:
    """Two processes whose environments differ in all that must not matter."""
    pair = (
        Child(PYTHONHASHSEED="1", LC_ALL="C", TZ="UTC"),
        Child(PYTHONHASHSEED="2", LC_ALL="C.UTF-8", TZ="Asia/Tokyo"),
    )
    assert [child.answer() for child in pair] == ["ready\n", "ready\n"]
    yield pair
    for child in pair:
        child.process.communicate()
        assert child.process.returncode == 0


def test_two_processes_that_build_the_same_at_once_both_succeed(
    cache: Path, tmp_path: Path, children: tuple[Child, Child]
) -> None:
    for number in range(6):
        path = write(tmp_path / f"{number}.jsonl", many_rows(500 + number))
        for child in children:
            child.ask(path, cache)
        first, second = (child.answer() for child in children)
        assert first == second
        assert json.loads(first)[0] == 500 + number
        assert len(entries(cache)) == number + 1


def test_tokens_do_not_depend_on_hash_seed_locale_zone_or_folder(
    tmp_path: Path, children: tuple[Child, Child]
) -> None:
    """Each has a cache of its own, so each computes; the shards were made in another order."""
    names = [f"{number}.jsonl" for number in range(6)]
    for child, order, folder in zip(children, (names, names[::-1]), ("a", "b/c"), strict=True):
        for name in order:
            write(tmp_path / folder / "shards" / name, [{"text": f"Åsk {name}"}, *ROWS])
        child.ask(tmp_path / folder / "shards", tmp_path / folder / "cache" / "tokenised")
    first, second = (child.answer() for child in children)
    assert first == second
    assert json.loads(first)[0] == 30


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_used(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "rows.jsonl", many_rows(60_000))
    child = Child()
    child.ask(path, cache)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size > 100_000 for file in cache.glob(".draft-*/rows.arrow")):
        assert time.monotonic() < deadline
        assert child.process.poll() is None
        time.sleep(0.005)
    child.process.send_signal(signal.SIGKILL)
    child.process.communicate()
    (draft,) = cache.iterdir()
    assert draft.name.startswith(".draft-")
    path = write(path, many_rows(50))
    dataset = prepare(path, tokenizer)
    assert dataset.summary.rows == 50
    again = prepare(path, tokenizer)
    assert contents(dataset) == contents(again)
    assert len(list(cache.iterdir())) == 2


def test_rows_that_change_while_they_are_read_are_refused_and_not_kept(
    tokenizer: PreTrainedTokenizerBase, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody appends a row between the digest and the last line."""
    path = write(tmp_path / "rows.jsonl")
    read = FileSource.rows

    def rows_of_a_growing_file(self: FileSource) -> Iterator[SourceRow]:
        yield from read(self)
        with path.open("a") as stream:
            stream.write(json.dumps({"text": "later"}) + "\n")

    monkeypatch.setattr(FileSource, "rows", rows_of_a_growing_file)
    with pytest.raises(UsageError, match=r"rows\.jsonl: changed while it was read; start again"):
        prepare(path, tokenizer)
    assert entries(cache) == []
