"""Causes are named where something convicts them, and nothing else is named."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.case import Case
from mltune_cli.reproduction.causes import CAUSES
from mltune_cli.reproduction.diagnosis import diagnose
from mltune_cli.reproduction.report import Diagnosis, FirstDifference, Localisation
from mltune_cli.witness.record import WitnessRecord


def difference(stage: str = "loss", step: int = 3) -> FirstDifference:
    return FirstDifference(
        step=step, stage=stage, stages=[stage], runs=(1, 2), values=("a", "b"), process="main"
    )


def place(differs: str = "output", **fields: Any) -> Localisation:
    given = {
        "step": 3, "process": "main", "record": 7, "operation": "aten.mm.default",
        "phase": "forward", "module": "Net.a", "node": None, "frame": "x.py:3 in f",
    }  # fmt: skip
    return Localisation(**{**given, "differs": differs, **fields})


class Experiments:
    """Pairs part unless they have one of the conditions that make them agree."""

    def __init__(self, *cures: str) -> None:
        self.cures = cures
        self.tried: list[tuple[str, ...]] = []

    def __call__(self, conditions: Sequence[str], until: FirstDifference) -> FirstDifference | None:
        self.tried.append(tuple(conditions))
        named = " ".join(conditions)
        agrees = any(cure in named if cure else not conditions for cure in self.cures)
        return None if agrees else until


def case(**fields: Any) -> Case:
    given: dict[str, Any] = {
        "difference": difference(), "localisation": None, "parted_again": 1,
        "agreed": 0, "records": ([], []),
    }  # fmt: skip
    return Case(**{**given, **fields})


@pytest.mark.parametrize(
    ("cure", "cause"),
    [
        ("hash-seed", "hash-seed"),
        ("seeds", "unseeded-random-numbers"),
        ("clock", "clock"),
        ("threads", "thread-count"),
        ("deterministic", "nondeterministic-operation"),
        ("nothing-helps", "unknown"),
    ],
)
def test_a_condition_that_makes_runs_agree_is_the_cause(cure: str, cause: str) -> None:
    found = diagnose(case(), Experiments(cure))
    assert found.cause == cause
    assert found.remedy == CAUSES[cause].remedy
    if cause != "unknown":
        assert "they agree" in found.evidence[-1]


def test_at_the_start_unseeded_numbers_are_the_initialisation() -> None:
    start = difference("parameters", 0).model_copy(update={"is_start": True})
    found = diagnose(case(difference=start), Experiments("seeds"))
    assert found.cause == "unseeded-initialisation"


def test_a_condition_is_not_blamed_where_later_pairs_agree_without_it() -> None:
    """What depends on how many runs there were before looks as if any condition had helped."""

    class Fading(Experiments):
        def __call__(
            self, conditions: Sequence[str], until: FirstDifference
        ) -> FirstDifference | None:
            super().__call__(conditions, until)
            return None

    found = diagnose(case(), Fading())
    assert found.cause == "unknown"
    assert "pairs agree, which may be chance: runs part too rarely" in found.evidence[0]


def test_runs_that_agree_later_convict_no_condition() -> None:
    """Where pairs agree without any condition, one under a condition proves nothing."""
    found = diagnose(case(parted_again=0), Experiments("", "hash-seed"))
    assert found.cause == "unknown"
    left = diagnose(
        case(parted_again=0, left_files=["run 1 left files: cache.pt"]), Experiments("")
    )
    assert left.cause == "cold-cache"
    assert "cache.pt" in left.evidence[-1]


@pytest.mark.parametrize(
    ("where", "cause"),
    [
        (place(), "nondeterministic-operation"),
        (place(is_convicted=True), "nondeterministic-operation"),
        (place(reads_uninitialised=True), "uninitialised-memory"),
        (place("input", was_written_outside=True, made_by="aten.relu.default"), "untraced-write"),
    ],
)
def test_what_the_trace_convicts_needs_no_experiment(where: Localisation, cause: str) -> None:
    experiments = Experiments()
    found = diagnose(case(localisation=where), experiments)
    assert found.cause == cause
    assert "aten.mm.default in Net.a at x.py:3 in f" in found.evidence[-1]
    assert experiments.tried == []


@pytest.mark.parametrize(
    ("where", "cause"),
    [
        (place("operation", values=("aten.mm at a", "aten.add at b")), "control-flow"),
        (place("operation", values=("aten.rand.default at a", "x")), "random-numbers-consumed"),
        (place("argument", values=("1", "2")), "outside-value"),
        (place("input"), "outside-value"),
    ],
)
def test_what_no_experiment_explains_is_told_as_it_was_seen(
    where: Localisation, cause: str
) -> None:
    assert diagnose(case(localisation=where), Experiments()).cause == cause


def varied(*variation: str, cures: tuple[str, ...] = ("",)) -> Diagnosis:
    return diagnose(case(variation=variation), Experiments(*cures))


@pytest.mark.parametrize(
    ("variation", "cause"),
    [
        ("hash-seed=1", "hash-seed"),
        ("directory-order=shuffled", "directory-order"),
        ("threads=2", "thread-count"),
        ("processes=2", "number-of-processes"),
        ("evaluation=1", "evaluation-cadence"),
        ("kill-and-resume=2", "resume"),
        ("argument=--eval_steps 2", "argument"),
        ("env.LANG=C", "environment-variable"),
        ("train.learning_rate=1", "recipe-key"),
    ],
)
def test_a_variation_is_blamed_where_runs_agree_without_it(variation: str, cause: str) -> None:
    found = varied(variation)
    assert found.cause == cause
    assert found.evidence[-1] == f"with {variation} in the second run they part"


def test_a_variation_is_not_blamed_where_runs_part_without_it() -> None:
    assert varied("hash-seed=1", cures=("clock",)).cause == "clock"


def test_two_variations_are_not_guessed_between() -> None:
    assert varied("hash-seed=1", "threads=2").cause == "unknown"


def start(**settings: Any) -> WitnessRecord:
    return WitnessRecord(0, {}, "Adam 1", {"seeds": [0], "settings": {"threads": 1, **settings}})


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("threads", "thread-count"),
        ("matmul precision", "precision-setting"),
        ("torch", "environment"),
    ],
)
def test_other_settings_are_named(name: str, cause: str) -> None:
    found = diagnose(
        case(records=([start(**{name: "a"})], [start(**{name: "b"})])), Experiments("clock")
    )
    assert found.cause == cause
    assert found.evidence == [f"{name} was a in one run and b in the other"]


def test_settings_of_another_condition_are_not_blamed_where_runs_part_without_it() -> None:
    records = ([start(threads=1)], [start(threads=2)])
    found = diagnose(case(records=records, variation=["threads=2"], parted_again=0), Experiments())
    assert found.cause == "unknown"
    assert "threads was 1 in one run and 2 in the other" in found.evidence


def test_names_of_files_are_no_calls_that_draw() -> None:
    values = ("aten.add.Tensor at normalize.py:10 in f", "aten.mul.Tensor at normalize.py:12 in f")
    found = diagnose(case(localisation=place("operation", values=values)), Experiments())
    assert found.cause == "control-flow"


def test_rows_in_the_same_order_are_not_said_to_be_in_another() -> None:
    def run(batch: str) -> list[WitnessRecord]:
        return [WitnessRecord(1, {"batch": batch}, "A", {"rows": ["r1", "r2"]})]

    found = diagnose(
        case(difference=difference("batch", 1), records=(run("a"), run("b"))), Experiments()
    )
    assert found.cause == "unknown"
    assert not any("another order" in evidence for evidence in found.evidence)


CONVOLUTION = place(operation="aten.convolution.default")


@pytest.mark.parametrize(
    ("where", "device", "is_searching", "cause"),
    [
        (CONVOLUTION, "GPU", True, "kernel-search"),
        (CONVOLUTION, "GPU", False, "nondeterministic-operation"),
        (CONVOLUTION, "cpu", True, "nondeterministic-operation"),
        (place(), "GPU", True, "nondeterministic-operation"),
        (place(operation="aten.convolution.default", is_convicted=True), "GPU", True,
         "nondeterministic-operation"),
    ],
)  # fmt: skip
def test_a_search_for_kernels_is_the_cause_where_runs_agree_without_it(
    where: Localisation, device: str, *, is_searching: bool, cause: str
) -> None:
    records = [start(device=device, **{"cudnn benchmark": is_searching})]
    seen = case(localisation=where, records=(records, records))
    assert diagnose(seen, Experiments("no-kernel-search")).cause == cause
    # Where the trace shows nothing, since it had another search, pairs of runs do.
    unseen = case(records=(records, records))
    is_search = device == "GPU" and is_searching
    assert (diagnose(unseen, Experiments("no-kernel-search")).cause == "kernel-search") is is_search
    # Where runs part without a search too, it is the operation.
    assert diagnose(seen, Experiments()).cause == "nondeterministic-operation"


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ("ba", "data-order"),
        ("az", "data-content"),
        ("abde", "data-content"),  # one was left out, and the next came up
        ("ef", "unknown"),  # the second run was stopped, and it may be either
        ("c", "unknown"),
        ("ca", "data-order"),  # which is a part of two epochs, too
        ("cafbde", "data-order"),
        ("bdfbdf", "data-content"),  # every second one
        ("bdf", "unknown"),
    ],
)
def test_rows_in_another_order_are_told_from_other_rows(rows: str, cause: str) -> None:
    def run(first: str) -> list[WitnessRecord]:
        return [WitnessRecord(3, {}, "Adam 1", {"rows": list(first)})]

    known = case(difference=difference("batch"), records=(run("abcdef" * 3), run(rows)))
    assert diagnose(known, Experiments()).cause == cause


def test_an_experiment_that_fails_is_told_and_ends_the_search() -> None:
    def fail(conditions: Sequence[str], last_step: int) -> FirstDifference | None:
        raise NoVerdictError(f"no {conditions} up to {last_step}")

    found = diagnose(case(), fail)
    assert found.cause == "unknown"
    assert "an experiment failed" in found.evidence[-1]


def test_every_cause_has_a_remedy() -> None:
    check: Callable[[str], bool] = str.islower
    for name, cause in CAUSES.items():
        assert name == cause.name
        assert cause.title
        assert cause.remedy
        assert check(name.replace("-", ""))


@pytest.mark.parametrize(
    ("threads", "device", "stage", "is_named"),
    [
        (2, "cpu", "loss", True),
        (1, "cpu", "loss", False),
        (2, "cpu", "gradients", False),
        (2, "NVIDIA H100", "loss", False),
    ],
)
def test_what_does_not_come_again_may_be_the_first_use_of_a_vector_function(
    threads: int, device: str, stage: str, is_named: bool
) -> None:
    started = [start(threads=threads, device=device)]
    found = diagnose(
        case(
            difference=difference(stage, 1), parted_again=0, records=(started, started)
        ),
        Experiments(""),
    )  # fmt: skip
    assert found.cause == "unknown"
    assert any("vector function" in line for line in found.evidence) == is_named


def test_what_comes_again_is_no_first_use() -> None:
    found = diagnose(
        case(records=([start(threads=2)], [start(threads=2)])), Experiments("nothing-helps")
    )
    assert found.cause == "unknown"
    assert not any("vector function" in line for line in found.evidence)


def test_threads_do_not_explain_numbers_that_come_from_outside() -> None:
    runs = ([start(threads=1)], [start(threads=2)])
    found = diagnose(case(records=runs, localisation=place("input")), Experiments("seeds"))
    assert found.cause == "unseeded-random-numbers"
    assert "threads was 1 in one run and 2 in the other" in found.evidence
    assert diagnose(case(records=runs, localisation=place()), Experiments()).cause == "thread-count"


def test_seeds_of_a_later_optimizer_tell_of_its_beginning() -> None:
    runs = tuple(
        [start(), WitnessRecord(0, {}, "Adam 2", {"seeds": [0, seed]}, after=2)] for seed in (3, 4)
    )
    begins = difference("parameters", 3).model_copy(update={"is_start": True})
    found = diagnose(case(difference=begins, records=runs), Experiments("nothing-helps"))
    assert found.cause == "unseeded-random-numbers"
    assert "given 0, 3 in one run and 0, 4 in the other" in found.evidence[0]
    # What part before it began do not part because of its seeds.
    found = diagnose(case(difference=difference("loss", 2), records=runs), Experiments("nothing"))
    assert found.cause == "unknown"


def test_only_what_the_differing_optimizer_trains_was_drawn_before_the_seed() -> None:
    records = [
        WitnessRecord(0, {}, "SGD 1", {"seeds": [0], "drawn_before_seed": 0}),
        WitnessRecord(0, {}, "SGD 2", {"seeds": [0], "drawn_before_seed": 2}, after=1),
    ]
    for optimizer, cause in (
        ("SGD 1", "unseeded-initialisation"), ("SGD 2", "seed-after-initialisation"),
    ):  # fmt: skip
        begins = difference("parameters", 0).model_copy(
            update={"is_start": True, "optimizer": optimizer}
        )
        found = diagnose(case(difference=begins, records=(records, records)), Experiments("seeds"))
        assert found.cause == cause


@pytest.mark.parametrize(
    ("where", "cause"),
    [
        (place("argument", values=("1", "2")), "outside-value"),
        (place("argument", values=("1", "2"), reaches_training=False), "unknown"),
        (place("input"), "outside-value"),
        (place("input", reaches_training=False), "unknown"),
        (place(reaches_training=False), "unknown"),
        (place(reads_uninitialised=True, reaches_training=False), "unknown"),
    ],
)
def test_what_nothing_is_trained_on_is_no_cause(where: Localisation, cause: str) -> None:
    found = diagnose(case(localisation=where), Experiments("nothing-helps"))
    assert found.cause == cause


def test_a_call_in_passing_is_no_cause() -> None:
    where = place("operation", values=("aten.mm at a", "aten.mean at b"), reaches_training=False)
    found = diagnose(case(localisation=where), Experiments("nothing"))
    assert found.cause == "unknown"
    assert "is not known to train on" in found.evidence[-1]


def test_what_a_later_optimizer_trains_is_not_from_outside_because_it_is_older() -> None:
    begins = difference("parameters", 3).model_copy(update={"is_start": True})
    found = diagnose(case(difference=begins, localisation=place("input")), Experiments("nothing"))
    assert found.cause == "unknown"


def test_what_buffers_come_of_is_a_cause_though_nothing_is_trained_on_it() -> None:
    where = place(reaches_training=False)
    found = diagnose(case(difference=difference("buffers"), localisation=where), Experiments("x"))
    assert found.cause == "nondeterministic-operation"
    written = place("input", was_written_outside=True, made_by="y", reaches_training=False)
    assert diagnose(case(localisation=written), Experiments("nothing")).cause == "unknown"
