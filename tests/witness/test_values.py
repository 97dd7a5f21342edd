"""Digests of what batches hold: of objects that hold each other, once and in any nesting."""

import array
import copy
import itertools
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.witness.stages import (
    hyperparameters,
    random_states,
    row_digests,
    value_digest,
)


class Node:
    """An object that holds others."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


_LEAVES = (
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.none()
    | st.integers(0, 3).map(lambda n: torch.arange(n + 1.0))
    | st.integers(0, 3).map(lambda n: numpy.arange(n + 1))
    | st.integers(0, 3).map(lambda n: numpy.array([n, "text", None], dtype=object))
)  # fmt: skip
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.lists(inner, max_size=3).map(lambda held: Node(held=held))
        | inner.map(lambda one: [one, one])
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=_VALUES)
def test_a_copy_has_the_same_digest(value: Any) -> None:
    assert value_digest(copy.deepcopy(value)) == value_digest(value)
    assert row_digests(copy.deepcopy(value)) == row_digests(value)
    # Held twice, or held and its like.
    assert value_digest([value, copy.deepcopy(value)]) == value_digest([value, value])


@settings(max_examples=200, deadline=None)
@given(value=_VALUES, place=st.lists(st.integers(0, 3), max_size=5))
def test_a_changed_leaf_has_another_digest(value: Any, place: list[int]) -> None:
    root = [value, ["a leaf"]]
    changed = copy.deepcopy(root)
    holder = changed
    for number in place:  # as deep as it goes
        lists = [one for one in holder if isinstance(one, list)]
        if not lists:
            break
        holder = lists[number % len(lists)]
    holder.append("another leaf")
    assert value_digest(changed) != value_digest(root)


def shared(depth: int, leaf: Any) -> Any:
    """Return a value that 2 ** depth ways lead through, to one leaf."""
    value = leaf
    for number in range(depth):
        value = [[value, value], {"a": value, "b": value}, Node(a=value, b=[value])][number % 3]
    return value


def test_what_many_ways_lead_to_is_digested_once() -> None:
    deep = [shared(40, [torch.ones(2)]) for _ in range(2)]
    other = shared(40, [torch.zeros(2)])
    assert value_digest(deep[0]) == value_digest(deep[1]) != value_digest(other)
    assert row_digests(deep[0]) == []
    # What is held twice is no other value than what is there twice.
    separate = copy.deepcopy(shared(0, [torch.ones(2)]))
    assert value_digest([separate, [torch.ones(2)]]) == value_digest([separate, separate])


def test_rows_are_those_of_tensors_wherever_they_are_held() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert len(row_digests({"b": [rows, (rows + 1,)], "a": rows})) == 3
    assert row_digests([rows, rows]) == row_digests([rows, rows.clone()])
    circle: list[Any] = [rows]
    circle.append(circle)
    assert row_digests(circle) == []


def connected(count: int, changed: int = -1) -> list[Node]:
    """Return objects each of which holds all."""
    nodes = [Node(rows=torch.tensor([number, number == changed])) for number in range(count)]
    for node in nodes:
        node.all = list(nodes)
    return nodes


CONNECTED = """
from test_values import connected, value_digest
print(value_digest(connected(30)), value_digest(connected(30)[7]))
"""


def test_objects_that_all_hold_each_other_have_one_digest_in_every_process(
    request: pytest.FixtureRequest,
) -> None:
    here = [value_digest(connected(30)), value_digest(connected(30)[7])]
    assert len({*here, value_digest(connected(30, changed=29))}) == 3
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", CONNECTED], cwd=request.path.parent, text=True, check=True,
            capture_output=True, env={"PYTHONHASHSEED": seed, "PATH": ""},
        )  # fmt: skip
        assert there.stdout.split() == here


def chain(count: int, last: float = 0.0, *, is_told_apart: bool = True) -> Node:
    """Return the first of objects each of which holds the next and the one before."""
    nodes = [Node(rows=torch.tensor([n if is_told_apart else 0.0])) for n in range(count)]
    for node, following in itertools.pairwise(nodes):
        node.after, following.before = [following], [node]
    nodes[-1].rows = torch.tensor([last])
    return nodes[0]


@pytest.mark.parametrize("is_told_apart", [True, False])
@pytest.mark.parametrize("count", [2, 5, 300, 1000])
def test_a_circle_is_digested_to_its_far_end(count: int, is_told_apart: bool) -> None:
    ends = [value_digest(chain(count, last, is_told_apart=is_told_apart)) for last in (7, 7, 8)]
    assert ends[0] == ends[1] != ends[2]


def test_in_a_circle_too_what_is_held_twice_is_no_other_value() -> None:
    def tree(*, is_shared: bool) -> Node:
        root = Node(rows=torch.ones(2))
        leaves = [Node(parent=root, rows=torch.zeros(1)) for _ in range(2)]
        root.children = [leaves[0], {"deeper": leaves[0 if is_shared else 1]}]
        return root

    assert value_digest(tree(is_shared=True)) == value_digest(tree(is_shared=False))
    one, two = tree(is_shared=True), tree(is_shared=True)
    assert value_digest([one, [one]]) == value_digest([one, [two]])
    two.children[0].rows = torch.ones(1)
    assert value_digest([one, [one]]) != value_digest([one, [two]])


def test_which_of_a_circle_is_held_shows() -> None:
    names: list[list[Any]] = [["a"], ["b"]]
    for mine, theirs in (names, names[::-1]):
        mine.append(theirs)
    assert value_digest(names[0]) != value_digest(names[1])


class Endless:
    """Makes its part when it is asked for it."""

    def keys(self) -> list[str]:
        return ["more"]

    def __getitem__(self, key: str) -> "Endless":
        return Endless()


def test_what_never_ends_is_refused() -> None:
    with pytest.raises(RecursionError, match="deep"):
        value_digest(Endless())
    assert row_digests(Endless()) == []


class _Pair(NamedTuple):
    keys: torch.Tensor
    values: torch.Tensor


@pytest.mark.parametrize(
    "batch",
    [
        _Pair(torch.arange(4.0), torch.arange(4.0)),
        Node(keys=torch.arange(4.0)),
        {"rows": torch.eye(3).to_sparse(), "labels": torch.arange(3)},
    ],
    ids=["named tuple", "object", "sparse"],
)  # fmt: skip
def test_whatever_loaders_give_ends_no_witness(batch: Any) -> None:
    """`keys` may be a field, and sparse tensors have no rows that could be told apart."""
    assert value_digest(batch) == value_digest(copy.deepcopy(batch))
    assert all(isinstance(row, str) for row in row_digests(batch))


class _Setting:
    pass


def test_settings_in_lists_have_no_address_and_no_rounding() -> None:
    def told(value: Any) -> str:
        parameter = torch.nn.Parameter(torch.ones(1))
        return hyperparameters(torch.optim.SGD([{"params": [parameter], "extra": value}], lr=0.1))

    assert told([_Setting()]) == told([_Setting()])
    assert told([torch.tensor(1.0)]) != told([torch.tensor(1.0000001)])
    assert "(0.9, 0.999)" in told((0.9, 0.999)), "goldens hold digests of this spelling"


def test_generators_are_read_without_numpy() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None\nimport torch\n"
        "from mltune_cli.witness.stages import random_states\n"
        "torch.manual_seed(3); print(random_states()['rng'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert done.stdout.strip() == random_states()["rng"]


class Picture:
    """What images of PIL have: bytes, a size and a mode, and no dtype."""

    def __init__(self, pixels: bytes, size: tuple[int, int] = (2, 1)) -> None:
        self.size, self.mode, self._pixels = size, "L", pixels

    def tobytes(self) -> bytes:
        return self._pixels


class Slotted:
    """A holder without `__dict__`."""

    __slots__ = ("__rows", "label")

    def __init__(self, rows: Any) -> None:
        self.__rows = rows


class SlottedMore(Slotted):
    __slots__ = "more"

    def __init__(self, rows: Any, more: Any) -> None:
        super().__init__(rows)
        self.more = more


def nested(layout: torch.layout, *rows: list[float]) -> torch.Tensor:
    parts = [torch.tensor(row) for row in rows]
    return torch.nested.nested_tensor(parts, layout=layout)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: Picture(b"ab"), lambda: Picture(b"ac")),
        (lambda: Picture(b"ab"), lambda: Picture(b"ab", (1, 2))),
        (lambda: array.array("i", [1]), lambda: array.array("i", [2])),
        (lambda: array.array("i", [1]), lambda: array.array("f", [1e-45])),
        (lambda: Slotted(torch.ones(2)), lambda: Slotted(torch.zeros(2))),
        (lambda: SlottedMore(1, [2]), lambda: SlottedMore(1, [3])),
        (lambda: SlottedMore([1], 2), lambda: SlottedMore([2], 2)),
        *(
            (
                lambda layout=layout: nested(layout, [1.0], [2.0, 3.0]),
                lambda layout=layout, other=other: nested(layout, *other),
            )
            for layout in (torch.strided, torch.jagged)
            for other in ([[1.0], [2.0, 4.0]], [[1.0, 2.0], [3.0]])
        ),
    ],
)
def test_values_of_rarer_kinds_differ_where_their_content_does(make: Any, change: Any) -> None:
    for wrapped in (lambda one: one, lambda one: [one], lambda one: Node(held=one)):
        assert value_digest(wrapped(make())) == value_digest(wrapped(make()))
        assert value_digest(wrapped(make())) != value_digest(wrapped(change()))
    assert row_digests(make()) == row_digests([make(), make()]) == []


def test_a_class_and_a_path_have_no_content() -> None:
    assert value_digest([numpy.ndarray]) == value_digest([numpy.ndarray])
    paths = [pathlib.Path("run-1"), pathlib.Path("run-2")]
    assert paths[0].parts  # which it keeps in a slot
    assert value_digest(paths[0]) == value_digest(paths[1])


def test_scratch_memory_among_the_settings_is_no_setting() -> None:
    def said(**group: Any) -> str:
        parameter = torch.nn.Parameter(torch.zeros(1))
        return hyperparameters(torch.optim.SGD([{"params": [parameter], **group}], lr=0.1))

    assert said(scratch=torch.ones(3)) == said(scratch=torch.zeros(3))
    assert said(scratch=torch.ones(3)) != said(scratch=torch.ones(4))
    assert said(lr=torch.tensor(0.1)) != said(lr=torch.tensor(0.2))


class InItsFile(Picture):
    """An image of PIL that nobody has read yet; then it could not be opened in another way."""

    tile = ("jpeg",)

    def tobytes(self) -> bytes:
        raise AssertionError("the training is not as it would be without the witness")


class Odd:
    """Something with a `tobytes` of its own kind."""

    def __init__(self, answer: Any) -> None:
        self.tobytes = answer


def needs_more(more: int) -> bytes:
    return bytes(more)


def test_bytes_that_are_not_at_hand_are_left_alone() -> None:
    assert value_digest(InItsFile(b"ab")) == value_digest(InItsFile(b"cd"))
    assert value_digest(InItsFile(b"ab")) != value_digest(InItsFile(b"ab", (1, 1)))
    for answer in (needs_more, lambda: "text", lambda: 3):
        assert value_digest([Odd(answer)]) == value_digest([Odd(answer)])
    gone = memoryview(b"ab")
    gone.release()
    assert value_digest(gone)


def test_a_nested_tensor_without_values_is_digested() -> None:
    meta = nested(torch.jagged, [1.0], [2.0, 3.0]).to("meta")
    assert value_digest(meta) == value_digest(meta)
