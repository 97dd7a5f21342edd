"""Rows come out of every kind of file as they went in, and a fault is named with its place."""

import csv
import datetime
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltune_cli.errors import RecipeValueError, UsageError
from mltune_cli.training.data.sources import FileSource, HubSource, find_source

ROWS = [
    {"question": "Where is Åsk?", "answer": "North of\nHest."},
    {"question": 'Who said "no, never"?', "answer": "日本, or so"},
    {"question": " padded ", "answer": "a\tb"},
]
# One folder serves all examples of a property: each writes its file anew.
examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def reading(*paths: Path) -> FileSource:
    return FileSource(str(paths[0]), paths)


def fields_of(path: Path) -> list[dict[str, Any]]:
    return [row.fields for row in reading(path).rows()]


def lines_of(path: Path) -> list[int]:
    """The line that each row's place names."""
    places = [row.place.split(" ")[0].rsplit(":", 1) for row in reading(path).rows()]
    assert {name for name, _ in places} <= {str(path)}
    return [int(line) for _, line in places]


def complaint(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        list(reading(path).rows())
    assert "\n" not in raised.value.message
    return raised.value.message


def as_csv(rows: list[dict[str, str]], end: str = "\n") -> str:
    stream = io.StringIO()
    # Python 3.11 writes a lone carriage return without the quotes that it needs.
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write_rows(path: Path, rows: list[dict[str, Any]], shape: str = "") -> Path:
    match shape or path.suffix:
        case ".jsonl" | "lines":
            text = "".join(json.dumps(row) + "\n" for row in rows)
        case ".json" | "list":
            text = json.dumps(rows)
        case "indented":
            text = json.dumps(rows, indent=2, ensure_ascii=False)
        case ".csv":
            text = as_csv(rows)
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
            return path
    path.write_bytes(text.encode())
    return path


# Every kind of file


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rows.jsonl", ""),
        ("rows.json", "list"),
        ("rows.json", "indented"),
        ("rows.json", "lines"),
        ("rows.csv", ""),
        ("rows.parquet", ""),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, shape: str) -> None:
    assert fields_of(write_rows(tmp_path / name, ROWS, shape)) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("closed", [True, False])
def test_byte_order_mark_line_ends_and_the_last_line_do_not_matter(
    tmp_path: Path, name: str, end: bytes, mark: bytes, closed: bool
) -> None:
    rows = [{"text": "one", "id": "1"}, {"text": "two", "id": "2"}]
    content = write_rows(tmp_path / name, rows, "indented" if name == "rows.json" else "")
    raw = content.read_bytes().rstrip(b"\n").replace(b"\n", end)
    content.write_bytes(mark + raw + (end if closed else b""))
    assert fields_of(content) == rows


def test_blank_lines_are_no_rows_and_the_lines_stay_right(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"a": 1}\n \t\n\r\n{"a": 2}\n\n')
    assert lines_of(path) == [2, 5]
    table = tmp_path / "rows.csv"
    table.write_bytes(b"\na,b\n\n1,2\n\r\n3,4\n\n")
    assert lines_of(table) == [4, 6]
    assert fields_of(table) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_characters_that_other_readers_take_for_line_ends_stay_in_the_text(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0bd\x0ce\x1cf"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n{}\n", "utf-8")
    assert fields_of(path) == [{"text": text}, {}]
    assert lines_of(path) == [1, 2]


@given(
    st.lists(st.fixed_dictionaries({"text": st.text(), "note": st.text()}), min_size=1, max_size=5),
    st.sampled_from([".jsonl", ".json", ".csv", ".parquet", "indented"]),
)
@examples
def test_any_text_survives_any_kind_of_file(
    tmp_path: Path, rows: list[dict[str, str]], kind: str
) -> None:
    path = tmp_path / f"rows{'.json' if kind == 'indented' else kind}"
    assert fields_of(write_rows(path, rows, kind)) == rows


@given(st.lists(st.text('ab,"\n\r ', max_size=8), min_size=1, max_size=6), st.booleans())
@examples
def test_a_csv_row_is_placed_at_the_line_where_it_begins(
    tmp_path: Path, texts: list[str], windows: bool
) -> None:
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    end = "\r\n" if windows else "\n"
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(rows, end).encode())
    expected = [
        1 + (as_csv(rows[:before], end) if before else end).count("\n")
        for before in range(len(rows))
    ]
    assert lines_of(path) == expected
    assert fields_of(path) == rows


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text()), min_size=1, max_size=6))
@examples
def test_a_row_of_a_json_list_is_placed_at_the_line_where_it_begins(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=1))
    lines = path.read_text().split("\n")
    found = list(reading(path).rows())
    assert [row.fields for row in found] == rows
    starts = [number for number, line in enumerate(lines, 1) if line.startswith(" {")]
    assert [row.place for row in found] == [
        f"{path}:{start} (row {number})" for number, start in enumerate(starts, 1)
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_alone_in_a_json_file_is_one_row(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "row.json"
    path.write_text("\n" + json.dumps(ROWS[0], indent=indent) + "\n")
    assert fields_of(path) == ROWS[:1]
    assert lines_of(path) == [2]


def test_parquet_columns_beside_the_text_arrive_whatever_their_type(tmp_path: Path) -> None:
    table = pa.table(
        {
            "messages": [[{"role": "user", "content": "Hi", "weight": None}], None],
            "id": pa.array([1, None], pa.int64()),
            "score": [float("nan"), 0.5],
            "when": pa.array([1, 2], pa.timestamp("ns")),
            "raw": [b"\xff", None],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = list(reading(tmp_path / "rows.parquet").rows())
    assert rows[0].fields["messages"] == [{"role": "user", "content": "Hi", "weight": None}]
    assert rows[1].fields["messages"] is None
    assert [row.place for row in rows] == [f"{tmp_path}/rows.parquet row {n}" for n in (1, 2)]


# Faults, each planted in a file of its own

GOOD = b'{"text": "x"}\n'
FAULTS = {
    "line 7 is cut off": ("x.jsonl", GOOD * 6 + b'{"text": "x\n' + GOOD, ":7: invalid JSON:"),
    "line 7 after a mark and blank lines": (
        "x.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n" * 5 + b"{text: 1}\n", ":7: invalid JSON:"),
    "two objects on line 2": ("x.jsonl", GOOD + GOOD.strip() * 2, ":2: invalid JSON: Extra data"),
    "a list in a jsonl file": ("x.jsonl", GOOD + b"[1]",
                               ":2: a row must be a JSON object, not a list"),
    "text for a row": ("x.jsonl", GOOD * 2 + b'"x"', ":3: a row must be a JSON object, not text"),
    "a number for a row": ("x.jsonl", b"1\n", ":1: a row must be a JSON object, not a number"),
    "null for a row": ("x.jsonl", b"null\n", ":1: a row must be a JSON object, not null"),
    "true for a row": ("x.jsonl", b"true\n", ":1: a row must be a JSON object, not true or false"),
    "NaN for a row": ("x.jsonl", b"NaN\n", ":1: a row must be a JSON object, not a number"),
    "Latin-1 in line 3": ("x.jsonl", GOOD * 2 + b'{"text": "\xe5"}\n', ":3: not UTF-8 text"),
    "Latin-1 in a table": ("x.csv", b"text\nx\n\xe5\n", ":3: not UTF-8 text"),
    "Latin-1 in a list": ("x.json", b'[\n{"text": "\xe5"}\n]', ":2: not UTF-8 text"),
    "UTF-16": ("x.jsonl", '{"text": "x"}\n'.encode("utf-16"), ":1: not UTF-8 text"),
    "nested without end": ("x.jsonl", GOOD + b'{"text": ' + b"[" * 200_000 + b"\n",
                           ":2: invalid JSON: nested too deeply"),
    "a list nested without end": ("x.json", b'[{"a": 1},\n{"text": ' + b"[" * 200_000 + b"]",
                                  ":2 (row 2): invalid JSON: nested too deeply"),
    "lines in json nested without end": ("x.json", GOOD + b'{"text": ' + b"[" * 200_000,
                                         ":2: invalid JSON: nested too deeply"),
    "a number of 5000 digits": ("x.jsonl", GOOD + b'{"id": ' + b"9" * 5000 + b"}",
                                ":2: invalid JSON: Exceeds the limit"),
    "a list that breaks on line 4": ("x.json", b'[\n{"text": "a"},\n{"text": "b"},\n{"text"}\n]',
                                     ":4: invalid JSON:"),
    "a list without its end": ("x.json", b'[\n{"text": "a"},\n{"text": "b"}\n',
                               ":4: invalid JSON:"),
    "a list that ends in a comma": ("x.json", b'[\n{"text": "a"},]', ":2: invalid JSON:"),
    "something after the list": ("x.json", b'[\n{"text": "a"}]\nx', ":3: invalid JSON: Extra data"),
    "a number in a list": ("x.json", b'[\n{"text": "a"},\n3\n]',
                           ":3 (row 2): a row must be a JSON object, not a number"),
    "an object that breaks on line 3": ("x.json", b'{\n"text": "a",\n"id" 3\n}',
                                        ":3: invalid JSON:"),
    "lines in json that break on line 3": ("x.json", GOOD * 2 + b'{"text"}\n', ":3: invalid JSON:"),
    "a lone text": ("x.json", b'"text"', ": must hold a list of objects, or one object a line"),
    "a lone number": ("x.json", b"12", ": must hold a list of objects, or one object a line"),
    "no JSON at all": ("x.json", b"text", ": invalid JSON: Expecting value"),
    "too few cells": ("x.csv", b'a,b\n"1\n1",2\n3\n',
                      ":4: the header names 2 cells, and this row has 1;"),
    "too many cells": ("x.csv", b"a,b\r\n1,2\r\n1,2,3\r\n",
                       ":3: the header names 2 cells, and this row has 3; quote"),
    "a quote that never ends": ("x.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n', ":3: not valid CSV:"),
    "text after a quote": ("x.csv", b'a,b\n1,2\n"3"x,4\n', ":3: not valid CSV:"),
    "a column named twice": ("x.csv", b"text,id,text\n1,2,3\n", ":1: the header names text more"),
    "Parquet in name alone": ("x.parquet", GOOD, ": not a readable Parquet file:"),
    "Parquet of no bytes": ("x.parquet", b"", ": not a readable Parquet file:"),
    **{
        f"nothing in it ({name}, {content!r})": (
            name, content, ": is empty; a data file needs at least one row")
        for name, content in [
            ("x.jsonl", b""), ("x.jsonl", b"\n \r\n"), ("x.jsonl", b"\xef\xbb\xbf"),
            ("x.json", b""),
            ("x.json", b" \n"), ("x.json", b"[ \n]"), ("x.csv", b""), ("x.csv", b"a,b\n"),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place(tmp_path: Path, fault: str) -> None:
    name, content, expected = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(content)
    assert complaint(path).startswith(f"{path}{expected}")


def test_rows_before_a_fault_are_read(tmp_path: Path) -> None:
    """Reading is streaming: what stands before a fault has been handed out."""
    for name, content in [("x.jsonl", GOOD * 2 + b"{"), ("x.json", b'[{"text": "x"}, {}, {')]:
        path = tmp_path / name
        path.write_bytes(content)
        rows = reading(path).rows()
        assert next(rows).fields == {"text": "x"}
        next(rows)
        with pytest.raises(UsageError):
            next(rows)


@pytest.mark.parametrize("kept", [4, 100, 0.5, 0.95])
def test_a_truncated_parquet_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = write_rows(tmp_path / "x.parquet", [{"text": f"row {n}"} for n in range(5000)])
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept if kept > 1 else kept * len(raw))])
    assert complaint(path).startswith(f"{path}: not a readable Parquet file:")


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert "is empty" in complaint(tmp_path / "x.parquet")


def test_parquet_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    broken = pa.array([b"ok", b"\xe5"]).view(pa.binary()).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, broken.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "x.parquet")
    assert complaint(tmp_path / "x.parquet").startswith(f"{tmp_path}/x.parquet: not UTF-8 text")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_what_cannot_be_read_is_a_sentence_from_rows_and_from_digest(
    tmp_path: Path, suffix: str
) -> None:
    folder, missing = tmp_path / f"folder{suffix}", tmp_path / f"missing{suffix}"
    folder.mkdir()
    for path in (folder, missing):
        for ask in (lambda source: source.digest(), lambda source: list(source.rows())):
            with pytest.raises(UsageError) as raised:
                ask(reading(path))
            assert raised.value.message.startswith(f"{path}: cannot be read: ")


# Which files


def test_a_folder_is_read_in_the_order_of_names_whatever_the_suffix_and_depth(
    tmp_path: Path,
) -> None:
    names = ["b/2.csv", "a.jsonl", "b/1.parquet", "c.json", "B.jsonl", "b/10/x.jsonl"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [{"text": name}])
    (tmp_path / "README.md").write_text("no rows")
    source = find_source("data.train", str(tmp_path), None)
    expected = ["B.jsonl", "a.jsonl", "b/1.parquet", "b/10/x.jsonl", "b/2.csv", "c.json"]
    assert [row.fields["text"] for row in source.rows()] == expected
    assert isinstance(source, FileSource)
    assert [path.relative_to(tmp_path).as_posix() for path in source.files] == expected


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    """Shards that were made in another order, and so are listed in another, read the same."""
    names = [f"{number:03}.jsonl" for number in range(30)]
    digests = set()
    for folder, order in [("forth", names), ("back", names[::-1])]:
        (tmp_path / folder).mkdir()
        for name in order:
            write_rows(tmp_path / folder / name, [{"text": name}])
        source = find_source("data.train", str(tmp_path / folder), None)
        assert [row.fields["text"] for row in source.rows()] == names
        digests.add(source.digest())
    assert len(digests) == 1


def test_hidden_copies_are_not_read_and_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    for name in [
        "train.parquet/part-0.parquet",
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        "._rows.jsonl",
        "more/.cache/x.json",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [{"text": name}])
    source = find_source("data.train", str(tmp_path), None)
    assert [row.fields["text"] for row in source.rows()] == ["train.parquet/part-0.parquet"]


def test_a_folder_below_a_hidden_one_is_read(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    write_rows(tmp_path / ".cache" / "x.jsonl", ROWS)
    source = find_source("data.train", str(tmp_path / ".cache"), None)
    assert len(list(source.rows())) == len(ROWS)


def test_a_shard_that_is_empty_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(UsageError, match=r"/b\.jsonl: is empty"):
        list(find_source("data.train", str(tmp_path), None).rows())


def test_a_digest_is_of_bytes_in_order_and_not_of_names(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "1.jsonl", ROWS[:1])
    second = write_rows(tmp_path / "2.jsonl", ROWS[1:])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(first.read_bytes())
    os.utime(copy, (0, 0))
    assert reading(first).digest() == reading(copy).digest()
    assert reading(first, second).digest() == reading(copy, second).digest()
    digests = [reading(*paths).digest() for paths in [(first,), (second,), (first, second),
                                                      (second, first), (first, first)]]  # fmt: skip
    assert len(set(digests)) == 5
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert reading(first).digest() != reading(copy).digest()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("a/b/c", "a/b/c: no such file"),
        ("../up", "../up: no such file"),
        ("with space", "with space: no such file"),
        ("notes.txt", "notes.txt: .txt is not one of .jsonl, .json, .csv, .parquet"),
        ("rows.jsonl.gz", "rows.jsonl.gz: .gz is not one of"),
        ("plain", "plain: no suffix is not one of"),
        ("empty", "empty: the folder holds no .jsonl, .json, .csv, .parquet files"),
    ],
)
@pytest.mark.parametrize("key", ["data.train", "data.validation"])
def test_a_name_that_leads_nowhere_is_a_problem_of_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("notes.txt", "rows.jsonl.gz", "plain"):
        Path(file).touch()
    Path("empty").mkdir()
    with pytest.raises(RecipeValueError) as raised:
        find_source(key, name, None)
    assert (raised.value.key, raised.value.problem[: len(problem)]) == (key, problem)


def test_bundled_rows_are_found_by_name() -> None:
    source = find_source("data.train", "mltune/repro_dataset/train.jsonl", None)
    assert len(list(source.rows())) >= 500
    with pytest.raises(UsageError, match=r"mltune/nothing: no such bundled data; there is mltune/"):
        find_source("data.train", "mltune/nothing", None)


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("data.train", "org/name", HubSource("org/name", "v1", "train")),
        ("data.validation", "org/name", HubSource("org/name", "v1", "validation")),
        ("data.train", "org/name:test", HubSource("org/name", "v1", "test")),
        ("data.train", "name:train[:10%]", HubSource("name", "v1", "train[:10%]")),
    ],
)
def test_a_hub_id_gets_the_split_of_its_key(key: str, name: str, expected: HubSource) -> None:
    assert find_source(key, name, "v1") == expected


# Memory

PEAK = """
import sys
from pathlib import Path
from mltune_cli.training.data.sources import FileSource

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

path = Path(sys.argv[1])
before = peak_bytes()
rows = sum(1 for _ in FileSource(str(path), (path,)).rows())
print(rows, peak_bytes() - before)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_stream_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    """60 MB of rows add less than 30 MB to the peak."""
    path = tmp_path / f"large{suffix}"
    text = "x" * 1000
    with path.open("w") as stream:
        if suffix == ".csv":
            stream.write("id,text\n")
        for number in range(60_000):
            row = f'{{"text": "{text}", "id": {number}}}\n'
            stream.write(row if suffix == ".jsonl" else f'{number},"{text}"\n')
    assert path.stat().st_size > 60_000_000
    result = subprocess.run(
        [sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True
    )
    path.unlink()
    rows, growth = map(int, result.stdout.split())
    assert rows == 60_000
    assert growth < 30_000_000


# The hub, by its own library, from a folder that stands where the id leads


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield tmp_path
    datasets.enable_progress_bars()


def test_hub_rows_are_those_of_the_split(hub: Path) -> None:
    (hub / "corpus").mkdir()
    write_rows(hub / "corpus" / "train.jsonl", ROWS)
    write_rows(hub / "corpus" / "test.jsonl", ROWS[:1])
    rows = list(HubSource("corpus", None, "train").rows())
    assert [row.fields for row in rows] == ROWS
    assert rows[2].place == "corpus (train) row 3"
    assert [row.place for row in HubSource("corpus", None, "test").rows()] == [
        "corpus (test) row 1"
    ]


def test_a_hub_digest_is_of_contents(hub: Path) -> None:
    for name, rows in [("one", ROWS), ("two", ROWS), ("three", ROWS[::-1]), ("four", ROWS[:2])]:
        (hub / name).mkdir()
        write_rows(hub / name / "train.jsonl", rows)
    digests = {name: HubSource(name, None, "train").digest() for name in
               ("one", "two", "three", "four")}  # fmt: skip
    assert digests["one"] == digests["two"]
    assert len(set(digests.values())) == 3


def test_hub_columns_that_are_not_json_neither_stop_the_digest_nor_escape_it(hub: Path) -> None:
    def table(day: int) -> pa.Table:
        return pa.table(
            {
                "text": ["one"],
                "score": [float("nan")],
                "when": [datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)],
                "raw": [b"\xff\x00"],
                "part": pa.array([{"day": datetime.date(2026, 1, 1)}]),
            }
        )

    digests = []
    for name, day in [("one", 1), ("two", 1), ("three", 2)]:
        (hub / name).mkdir()
        pq.write_table(table(day), hub / name / "train.parquet")
        digests.append(HubSource(name, None, "train").digest())
    assert digests[0] == digests[1] != digests[2]


def test_hub_pictures_are_left_where_they_are(hub: Path) -> None:
    """A picture that nothing could decode stands beside the text, and is never opened."""
    features = datasets.Features({"text": datasets.Value("string"), "seen": datasets.Image()})
    stored = [{"bytes": b"no picture", "path": None}]
    table = pa.table({"text": ["one"], "seen": stored}, schema=features.arrow_schema)
    (hub / "seen").mkdir()
    pq.write_table(table, hub / "seen" / "train.parquet")
    assert "seen" in datasets.load_dataset("seen", split="train").features
    source = HubSource("seen", None, "train")
    assert [row.fields for row in source.rows()] == [{"text": "one"}]
    assert source.digest().startswith("xxh3_128:")


@pytest.mark.parametrize(("name", "split"), [("corpus", "validation"), ("org/absent", "train")])
def test_a_hub_name_that_gives_no_rows_is_a_sentence(hub: Path, name: str, split: str) -> None:
    (hub / "corpus").mkdir()
    write_rows(hub / "corpus" / "train.jsonl", ROWS)
    for ask in (lambda source: source.digest(), lambda source: list(source.rows())):
        with pytest.raises(UsageError) as raised:
            ask(HubSource(name, None, split))
        assert raised.value.message.startswith(
            f"{name}: is neither a file or folder here nor a hub data set with a split {split} "
        )
        assert "\n" not in raised.value.message


def test_compressed_shards_are_not_left_out_in_silence(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl.gz").touch()
    with pytest.raises(RecipeValueError, match=r"/b\.jsonl\.gz: compressed shards are not read"):
        find_source("data.train", str(tmp_path), None)
