"""Which of the calls at which two traces part is named, and how pairs are counted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.reproduction.localising import Localising, TracedPair, localise
from mltune_cli.reproduction.report import FirstDifference, Localisation
from mltune_cli.reproduction.trace_comparison import (
    TraceFiles,
    compare_traces,
    convicted,
    uninitialised_read,
)
from mltune_cli.witness.trace_record import (
    END,
    UNINITIALISED,
    TracedTensor,
    TraceRecord,
    TraceRequest,
)

BACKWARD = "backward"


def tensor(digest: str, made_by: int | None = None, memory: int | None = None) -> TracedTensor:
    return TracedTensor(digest, "complex64", (2,), made_by, memory)


def call(
    operation: str,
    out: str,
    *inputs: TracedTensor,
    phase: str = "forward",
    scalars: str = "",
    **fields: Any,
) -> TraceRecord:
    return TraceRecord(operation, phase, scalars, inputs, (tensor(out),), **fields)


def _filling(out: str, read: TracedTensor, memory: int) -> TraceRecord:
    return TraceRecord("aten.copy_.default", "forward", "", (read,), (tensor(out, memory=memory),))


def number_of(read: TracedTensor) -> TraceRecord:
    return TraceRecord("aten._local_scalar_dense.default", "elsewhere", "", (read,))


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., TraceFiles]:
    def write(*records: TraceRecord) -> TraceFiles:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (folder / "trace").mkdir(parents=True)
        lines = [record.to_json() for record in records] + [json.dumps({END: len(records)})]
        (folder / "trace" / "main.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return TraceFiles(folder, "main")

    return write


Trace = Callable[..., TraceFiles]


def parting(trace: Trace, step: Callable[[int], list[TraceRecord]]) -> Localisation:
    """Return where the traces of one step in two runs part."""
    found = compare_traces(trace(*step(1)), trace(*step(2)), 1)
    assert found is not None
    return found


def timed(run: int, *, is_noisy: bool, is_used: bool = False) -> list[TraceRecord]:
    """A tensor of timings, an operation that may be noisy, and a step that is trained on it."""
    noisy = f"noisy{run if is_noisy else 0}"
    last = [tensor(noisy, 1), tensor(f"time{run}", 0)] if is_used else [tensor(noisy, 1)]
    return [
        call("aten.add_.Tensor", f"time{run}", tensor("zero"), scalars=f"0.00{run}"),
        call("my.noisy", noisy, tensor("row")),
        call("aten.mul.Tensor", f"loss of {noisy}", *last),
        call("aten.mul.Tensor", f"gradient of {noisy}", *last, phase=BACKWARD),
    ]


def test_what_nothing_is_trained_on_gives_way_to_what_something_is(trace: Trace) -> None:
    found = compare_traces(*(trace(*timed(run, is_noisy=True)) for run in (1, 2)), 1)
    assert found is not None
    assert (found.operation, found.differs) == ("my.noisy", "output")
    assert found.reaches_training
    alone = compare_traces(*(trace(*timed(run, is_noisy=False)) for run in (1, 2)), 1)
    assert alone is not None
    assert (alone.operation, alone.reaches_training) == ("aten.add_.Tensor", False)
    used = compare_traces(*(trace(*timed(run, is_noisy=True, is_used=True)) for run in (1, 2)), 1)
    assert used is not None
    assert (used.operation, used.reaches_training) == ("aten.add_.Tensor", True)


def test_a_number_that_python_reads_leads_on(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        return [
            call("aten.rand.default", f"r{run}", random_state=f"s{run}"),
            number_of(tensor(f"r{run}", 0)),
            call("aten.mul.Tensor", f"g{run}", tensor("w"), scalars=f"0.{run}", phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.reaches_training) == ("aten.rand.default", True)


@pytest.mark.parametrize("way", ["item", "numpy", "tolist"])
def test_a_result_that_python_had_meanwhile_stays_the_first(trace: Trace, way: str) -> None:
    """What comes back is from outside, and would be blamed for itself."""

    def step(run: int) -> list[TraceRecord]:
        reads = [number_of(tensor(f"n{run}", 0))]
        scale = call("aten.mul.Tensor", f"g{run}", tensor("w"), tensor(f"s{run}"), phase=BACKWARD)
        if way == "tolist":
            scale = call("aten.mul.Tensor", f"g{run}", tensor("w"), scalars=f"{run}")
        more = reads if way == "item" else []
        return [call("my.noisy", f"n{run}", tensor("row")), *more, scale]

    found = parting(trace, step)
    assert (found.operation, found.reaches_training) == ("my.noisy", True)


def test_a_number_that_python_draws_is_why_it_is_used(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        drawn = TraceRecord("python.random.random", "elsewhere", "", random_state=f"s{run}")
        used = call("aten.mul.Tensor", f"g{run}", tensor("w"), scalars=f"0.{run}", phase=BACKWARD)
        return [drawn, used]

    found = parting(trace, step)
    assert (found.operation, found.reaches_training) == ("python.random.random", True)


def test_what_is_the_same_again_leads_nowhere(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        return [
            call("my.noisy_metric", f"n{run}", tensor("row")),
            call("aten.gt.Scalar", "mask", tensor(f"n{run}", 0)),
            call("my.noisy", f"x{run}", tensor("row")),
            call("aten.mul.Tensor", f"g{run}", tensor("mask", 1), tensor(f"x{run}", 2),
                 phase=BACKWARD),
        ]  # fmt: skip

    found = parting(trace, step)
    assert (found.operation, found.reaches_training) == ("my.noisy", True)


def test_ones_begin_no_backward_pass_alone(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        return [
            call("aten.add_.Tensor", f"time{run}", tensor("zero"), scalars=f"0.00{run}"),
            call("aten.ones_like.default", "1", tensor(f"time{run}", 0)),
            call("my.noisy", f"n{run}", tensor("row")),
            call("aten.mul.Tensor", f"g{run}", tensor(f"n{run}", 2), phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.reaches_training) == ("my.noisy", True)


def test_a_seed_that_is_drawn_leads_to_another_generator(trace: Trace) -> None:
    """Or has nothing to do with it, and both are told."""

    def step(run: int) -> list[TraceRecord]:
        return [
            TraceRecord("python.random.randint", "elsewhere", "", random_state=f"p{run}"),
            call("aten.randn.default", f"d{run}", random_state=f"s{run}"),
            call("aten.mul.Tensor", f"g{run}", tensor(f"d{run}", 1), phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.or_at) == ("python.random.randint", "aten.randn.default")


def test_memory_that_is_filled_anew_has_no_past(trace: Trace) -> None:
    """Nor has a part of it that is the same in both runs."""

    def step(run: int) -> list[TraceRecord]:
        filled = {"memory": 3}
        return [
            replace(_filling(f"time{run}", tensor("0"), **filled), scalars=f"{run}"),
            _filling("zero", tensor("0"), **filled),
            call("my.noisy", f"n{run}", tensor("zero", 1, 3)),
            call("aten.mul.Tensor", f"g{run}", tensor(f"n{run}", 2), phase=BACKWARD),
        ]

    assert parting(trace, step).operation == "my.noisy"


def test_a_logged_loss_is_no_way_around_torch(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        loss = tensor(f"n{run}", 0)
        return [
            call("my.noisy", f"n{run}", tensor("row")),
            number_of(loss),
            call("aten.ones_like.default", "1", loss),
            call("aten.mul.Tensor", f"g{run}", loss, phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.or_at) == ("my.noisy", None)


def test_what_python_may_have_made_of_a_number_is_told_beside_it(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        return [
            number_of(tensor(f"time{run}")),
            call("aten.mul.Tensor", f"g{run}", tensor(f"noise{run}"), phase=BACKWARD,
                 frame="train.py:9"),
        ]  # fmt: skip

    found = parting(trace, step)
    assert found.operation == "aten._local_scalar_dense.default"
    assert found.or_at == "aten.mul.Tensor at train.py:9"
    direct = parting(trace, lambda run: step(run)[1:])
    assert (direct.operation, direct.or_at) == ("aten.mul.Tensor", None)


def one_alone(
    run: int, *, used: bool = False, rest: tuple[str, ...] = ("x", "y"), **fields: Any
) -> list[TraceRecord]:
    """A step in which the second run calls something that the first one does not."""
    before = [call("aten.mm.default", "m", tensor("w", -1))]
    alone = [call("aten.mean.default", "a", tensor("m", 0), **fields), number_of(tensor("a", 1))]
    shift = 0 if run == 1 else len(alone)
    read = tensor("a", 1) if used and run == 2 else tensor("m", 0)
    after = [
        call(f"aten.{name}.default", name, read, module=f"m.{number}")
        for number, name in enumerate(rest)
    ]
    last = tensor(rest[-1], len(rest) + shift) if rest else read
    trained = call("aten.mm.default", "g", last, phase=BACKWARD)
    return [*before, *(alone if run == 2 else []), *after, trained]


@pytest.mark.parametrize("is_first_longer", [False, True])
def test_a_call_in_passing_is_not_why_training_parts(trace: Trace, is_first_longer: bool) -> None:
    """What writes a log every few seconds calls something at another step in each run."""

    def found(**change: Any) -> Localisation:
        def step(run: int) -> list[TraceRecord]:
            return one_alone(3 - run if is_first_longer else run, **change)

        place = parting(trace, step)
        assert place.differs == "operation"
        return place

    assert not found().reaches_training
    assert not found(rest=()).reaches_training
    assert found(used=True).reaches_training
    assert found(phase="optimizer").reaches_training
    assert found(random_state="s").reaches_training


@pytest.mark.parametrize("is_view", [False, True])
def test_a_view_that_one_run_takes_is_another_branch(trace: Trace, is_view: bool) -> None:
    """It moves nothing, so what it gives is followed by what parts after it."""

    def step(run: int) -> list[TraceRecord]:
        alone = [TraceRecord("aten.t.default", "forward", "")] if is_view and run == 2 else []
        seen = f"h{run}" if is_view else "h"
        read = tensor(seen, 0)
        return [
            call("aten.mm.default", "h", tensor("w", -1)),
            *alone,
            *([] if is_view or run == 1 else [number_of(tensor("h", 0))]),
            *(call("aten.tanh.default", f"t of {seen}", read) for _ in range(9)),
            call("my.noisy", f"n{run}", tensor("row"), phase=BACKWARD),
        ]

    assert parting(trace, step).reaches_training is is_view


def test_another_branch_is_no_call_in_passing(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        return one_alone(1, rest=("tanh", "mul") if run == 1 else ("relu", "add"))

    assert parting(trace, step).reaches_training


def test_a_silent_write_comes_of_nothing_before(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        return [
            call("aten.add_.Tensor", f"time{run}", tensor("zero"), scalars=f"0.00{run}"),
            call("aten.mm.default", f"m{run}", tensor(f"w{run}", -1), phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.was_written_outside) == ("aten.mm.default", True)


def test_who_draws_more_is_why_others_draw_otherwise(trace: Trace) -> None:
    def step(run: int) -> list[TraceRecord]:
        return [
            call("aten.rand.default", f"r{run}", scalars=f"[{run}]", random_state="s"),
            call("aten.bernoulli_.float", f"b{run}", random_state=f"s{run}"),
            call("aten.mul.Tensor", f"g{run}", tensor(f"b{run}", 1), phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.reaches_training) == ("aten.rand.default", True)


def test_memory_that_is_filled_in_parts_blames_no_silent_write(trace: Trace) -> None:
    """The second part's writer is the last one; what the first one wrote is not followed."""

    def step(run: int) -> list[TraceRecord]:
        return [
            _filling(f"a{run}", tensor(f"file{run}"), memory=7),
            _filling("b", tensor("other"), memory=7),
            call("aten.mm.default", f"m{run}", tensor(f"ab{run}", 1, 7), phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.was_written_outside) == ("aten.copy_.default", False)
    assert found.reaches_training
    # With nothing before that parts, it is one.

    def silent(run: int) -> list[TraceRecord]:
        return [
            # What parts elsewhere is no reason.
            _filling(f"time{run}", tensor(f"file{run}"), memory=8),
            _filling("b", tensor("other"), memory=7),
            call("aten.mm.default", f"m{run}", tensor(f"ab{run}", 1, 7), phase=BACKWARD),
        ]

    alone = parting(trace, silent)
    assert (alone.operation, alone.made_by) == ("aten.mm.default", "aten.copy_.default")
    assert alone.was_written_outside
    assert alone.reaches_training


@pytest.mark.parametrize(("memory", "is_same"), [(4, True), (5, False)])
def test_memory_that_was_written_silently_is_told_where_it_is_read_first(
    trace: Trace, memory: int, is_same: bool
) -> None:
    """Rounded away in the forward pass it is still what the backward pass reads."""

    def step(run: int) -> list[TraceRecord]:
        return [
            call("aten.mm.default", "m", tensor(f"w{run}", -1, 4)),
            call("aten.mm.default", f"g{run}", tensor(f"w{run}'", -1, memory), phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.phase, found.differs) == ("forward" if is_same else BACKWARD, "input")
    assert found.was_written_outside
    assert found.reaches_training


@pytest.mark.parametrize(
    ("first", "reaches"),
    [(call("my.noisy", "x", tensor("row")), True), (call("aten.add.Tensor", "x"), False)],
)
def test_after_another_call_nothing_is_known_of_what_is_trained_on(
    trace: Trace, first: TraceRecord, reaches: bool
) -> None:
    """An operation with two results is one, whatever comes of it; a number may be anything."""

    def step(run: int) -> list[TraceRecord]:
        change: dict[str, Any] = {"outputs": (tensor(f"x{run}"),)}
        if not reaches:
            change["scalars"] = f"0.{run}"
        return [
            replace(first, **change),
            call(f"aten.branch{run}.default", "x"),
            call("aten.mm.default", "g", tensor("x", 1), phase=BACKWARD),
        ]

    found = parting(trace, step)
    assert (found.operation, found.reaches_training) == (first.operation, reaches)


@pytest.mark.parametrize("kind", ["two results", "raw memory"])
def test_a_conviction_is_one_that_the_step_is_trained_on(trace: Trace, kind: str) -> None:
    guilty: dict[str, Any] = {"unequal": ((0, "x"),)} if kind == "two results" else {}
    raw = tensor(UNINITIALISED if kind == "raw memory" else "a")
    harmless = call("aten.sort.default", "logged", raw, **guilty)
    harmful = call("aten.index_add.default", "sum", raw, **guilty)
    rest = [
        call("aten.ones_like.default", "1", tensor("sum", 1)),
        call("my.back", "g", phase=BACKWARD),
    ]
    look = convicted if kind == "two results" else uninitialised_read
    found = look(trace(harmless, harmful, *rest), 1)
    assert found is not None
    assert (found.operation, found.reaches_training) == ("aten.index_add.default", True)
    alone = look(trace(harmless, call("aten.mm.default", "sum"), *rest), 1)
    assert alone is not None
    assert (alone.operation, alone.reaches_training) == ("aten.sort.default", False)


def parts(step: int, **fields: Any) -> FirstDifference:
    return FirstDifference(
        step=step, stage="loss", stages=["loss"], runs=(1, 2), values=("a", "b"), process="main",
        **fields,
    )  # fmt: skip


def localised(
    pairs: list[TracedPair], once: TraceFiles, difference: FirstDifference | None = None
) -> tuple[Localising, list[TraceRequest]]:
    asked: list[TraceRequest] = []

    def run_pair(request: TraceRequest, process: str) -> TracedPair:
        asked.append(request)
        return pairs.pop(0)

    result = localise(difference or parts(5), run_pair, lambda request, process: once)
    return result, asked


def test_every_pair_is_counted(trace: Trace) -> None:
    first, second = (trace(*timed(run, is_noisy=True)) for run in (1, 2))
    agreeing = [TracedPair((first, first), None, None)] * 3
    # Its values are of a kind that is not read, so another pair is run to keep more of them.
    parting = [TracedPair((first, second), None, parts(5))] * 2
    result, _ = localised([*agreeing, *parting], first)
    assert (result.parted, result.agreed) == (2, 3)
    assert result.found is not None
    agrees_again = [parting[0], agreeing[0]]
    result, _ = localised(agrees_again, first)
    assert (result.parted, result.agreed) == (1, 1)
    assert result.found is not None
    assert result.found.operation == "my.noisy"


def test_a_pair_that_parts_before_the_step_tells_nothing_of_it(trace: Trace) -> None:
    first, second = (trace(*timed(run, is_noisy=True)) for run in (1, 2))
    early = TracedPair(
        (trace(call("aten.mm.default", "x", tensor("a", -1))),
         trace(call("aten.mm.default", "y", tensor("b", -1)))), parts(3), parts(3),
    )  # fmt: skip
    result, _ = localised([TracedPair((first, second), None, parts(5)), early], first)
    assert result.found is not None
    assert (result.found.operation, result.found.was_written_outside) == ("my.noisy", False)


def test_traces_that_part_are_nothing_where_the_steps_agree(trace: Trace) -> None:
    """Garbage that is read and thrown away, say."""
    first, second = (
        trace(call("aten._to_copy.default", out, tensor(UNINITIALISED))) for out in ("x", "y")
    )
    result, _ = localised([TracedPair((first, second), None, None)] * 5, first)
    assert (result.found, result.parted, result.agreed) == (None, 0, 5)
    assert "gave two results" in result.notes[0]


def test_a_later_optimizers_model_is_looked_for_before_the_first_step(trace: Trace) -> None:
    read = [trace(call("aten.mm.default", out, tensor(out))) for out in ("x", "y")]
    made = [trace(call("aten.normal_.default", out, random_state=out)) for out in ("x", "y")]
    difference = parts(3, is_start=True)
    pairs = [
        TracedPair((read[0], read[1]), None, difference),
        TracedPair((read[0], read[1]), None, difference),
        TracedPair((made[0], made[1]), None, None),
    ]
    result, asked = localised(pairs, read[0], difference)
    assert [request.step for request in asked] == [3, 3, 0]
    assert result.found is not None
    assert (result.found.operation, result.found.step) == ("aten.normal_.default", 0)


@pytest.mark.parametrize(
    ("stage", "is_trained_on", "is_replaced"),
    [("loss", True, True), ("loss", False, False), ("batch", True, False)],
)
def test_another_optimizers_model_may_be_made_before_the_first_one_steps(
    trace: Trace, stage: Any, is_trained_on: bool, is_replaced: bool
) -> None:
    """Nobody digests it before its own first step, and the first step may read it."""
    read = [trace(call("aten.mm.default", out, tensor(out))) for out in ("x", "y")]
    made = [
        trace(
            call("aten.normal_.default", out, random_state=out),
            call("aten.mm.default", out, tensor(out, 0 if is_trained_on else None), phase=BACKWARD),
        )
        for out in ("x", "y")
    ]
    difference = parts(1).model_copy(update={"stage": stage})
    pairs = [TracedPair((read[0], read[1]), None, difference)] * 2
    pairs.append(TracedPair((made[0], made[1]), None, difference))
    result, _ = localised(pairs, read[0], difference)
    assert result.found is not None
    assert (result.found.operation == "aten.normal_.default") is is_replaced
