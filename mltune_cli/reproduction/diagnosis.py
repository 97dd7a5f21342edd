"""From a difference to its cause: what was seen, and what repeated runs show.

A cause is named where something convicts it: an operation that gave two results, settings that
were not the same, or an experiment, in which two runs that part are run again with one condition
held fixed in both, and agree. Otherwise the answer is `unknown`, with what was seen.
"""

from dataclasses import dataclass

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.case import Case, call_of, first_use, matters, seeds_given, seen
from mltune_cli.reproduction.causes import CAUSES
from mltune_cli.reproduction.experiments import Experiments, PartingChance, TryPair
from mltune_cli.reproduction.observations import (
    differing_settings,
    drawn_before_seed,
    rows_are_the_same,
    searches_for_kernels,
)
from mltune_cli.reproduction.report import Diagnosis
from mltune_cli.reproduction.trace_comparison import FROM_OUTSIDE

# A day on which nothing happens.
_INSTANT = "2026-01-02T03:04:05"
# Condition that is held fixed in both runs, to the cause that it convicts, and how to say so.
_EXPERIMENTS = (
    ("hash-seed=0", "hash-seed", "one hash seed (PYTHONHASHSEED=0)"),
    ("seeds=0", "unseeded-random-numbers", "all generators seeded at the start"),
    (f"clock=frozen@{_INSTANT}", "clock", "one clock"),
)
_KERNEL_EXPERIMENTS = (
    ("threads=1", "thread-count", "a single thread"),
    ("deterministic", "nondeterministic-operation", "torch.use_deterministic_algorithms(True)"),
)
_SEARCH_EXPERIMENT = ("no-kernel-search", "kernel-search", "torch.backends.cudnn.benchmark off")
_DRAWING = (
    "rand", "shuffle", "choice", "sample", "permutation", "normal", "uniform", "bernoulli",
    "dropout", "multinomial", "exponential", "poisson", "geometric", "cauchy",
)  # fmt: skip
_VARIATION_CAUSES = {
    "processes": "number-of-processes",
    "evaluation": "evaluation-cadence",
    "kill-and-resume": "resume",
    "threads": "thread-count",
}


@dataclass
class _Inquiry:
    """A case, the experiments on it, and the evidence gathered so far.

    Attributes:
        is_varied: the runs had other conditions, and without them may agree.
    """

    case: Case
    experiments: Experiments
    evidence: list[str]
    is_varied: bool
    _parts_again: bool | None = None

    def conclude(self, cause: str, *evidence: str) -> Diagnosis:
        row = CAUSES[cause]
        return Diagnosis(
            cause=cause, title=row.title, evidence=[*self.evidence, *evidence], remedy=row.remedy
        )

    def parts_again(self) -> bool:
        """Tell whether the runs, run again, part again: else experiments would prove nothing."""
        if self._parts_again is None:
            self._parts_again = self.case.parted_again > 0 or not self.experiments.agree_as_before()
        return self._parts_again

    def is_cured_by(self, condition: str, said: str) -> bool:
        """Tell whether a condition makes the runs agree; what was seen is evidence."""
        is_cure, seen = self.experiments.cured_by(condition)
        self.evidence.append(f"with {said} in both runs, {seen}")
        return is_cure


def diagnose(case: Case, try_pair: TryPair) -> Diagnosis:
    """Name the cause of a difference, or `unknown`.

    Args:
        case: what is known.
        try_pair: runs an experiment.
    """
    chance = PartingChance(parted=1 + case.parted_again, agreed=case.agreed)
    experiments = Experiments(try_pair, case.difference, chance)
    inquiry = _Inquiry(case, experiments, list(seen(case)), bool(case.variation))
    rules = (
        _variation, _settings, _memory, _kernel_search, _operation_itself, _what_was_left,
        _conditions, _seeds, _hyperparameters, _random_numbers, _kernels, _data, _control_flow,
    )  # fmt: skip
    try:
        for rule in rules:
            found = rule(inquiry)
            if found is not None:
                return found
    except NoVerdictError as error:
        inquiry.evidence.append(f"an experiment failed: {error.message.splitlines()[0]}")
    inquiry.evidence.extend(first_use(case))
    return inquiry.conclude("unknown")


def _variation(inquiry: _Inquiry) -> Diagnosis | None:
    """Blame what was varied, if without it the runs agree."""
    varied = list(inquiry.case.variation)
    if not varied:
        return None
    step = inquiry.case.difference.step
    pairs, do_agree = inquiry.experiments.agree_without_exception()
    if not do_agree:
        part = "two runs" if pairs == 1 else f"one of {pairs} pairs"
        inquiry.evidence.append(f"{part} without the variation part as well")
        inquiry.is_varied = False
        return None
    inquiry.evidence.append(f"{pairs} pairs without the variation are equal up to step {step}")
    names = sorted({_variation_cause(one) for one in varied})
    if len(names) > 1:
        inquiry.evidence.append(f"with {', '.join(varied)} they part; vary one at a time")
        return inquiry.conclude("unknown")
    return inquiry.conclude(names[0], f"with {', '.join(varied)} in the second run they part")


def _variation_cause(condition: str) -> str:
    name = condition.partition("=")[0]
    if name.startswith("env."):
        return "environment-variable"
    if name in _VARIATION_CAUSES:
        return _VARIATION_CAUSES[name]
    if name in CAUSES:
        return name
    return "recipe-key" if "." in name else "environment"


def _settings(inquiry: _Inquiry) -> Diagnosis | None:
    """Compare what both runs said about torch and the machine at their start.

    Where they part before an operation computes, at other numbers or another call, no kernel and
    no number of threads can be why.
    """
    where = inquiry.case.localisation
    is_computed = where is None or where.differs == "output"
    decides_alone = {"torch", "python", "device", "deterministic", "default dtype"}
    for name, mine, theirs in differing_settings(inquiry.case.records):
        evidence = f"{name} was {mine} in one run and {theirs} in the other"
        cause = {
            "threads": "thread-count",
            "capability": "instruction-set",
            "matmul precision": "precision-setting",
            "tf32": "precision-setting",
            "default dtype": "precision-setting",
        }.get(name, "environment")
        # Another condition may well change settings: whether that matters was asked before.
        if not inquiry.case.variation and (is_computed or name in decides_alone):
            return inquiry.conclude(cause, evidence)
        inquiry.evidence.append(evidence)
    return None


def _memory(inquiry: _Inquiry) -> Diagnosis | None:
    where = inquiry.case.localisation
    if where is None:
        return None
    if not matters(inquiry.case):
        return None
    if where.reads_uninitialised and where.differs == "output":
        return inquiry.conclude(
            "uninitialised-memory", f"{call_of(where)} reads memory that nothing has written"
        )
    if where.was_written_outside and where.differs == "input":
        return inquiry.conclude(
            "untraced-write",
            f"{call_of(where)} reads what {where.made_by} gave, which was equal in both runs and "
            "is not any more",
        )
    return None


def _kernel_search(inquiry: _Inquiry) -> Diagnosis | None:
    """See whether convolutions agree where nobody looks for the fastest one.

    Within a process the search is over after the first time: executed again, they come out alike.
    Strict mode does not end it; it leaves some kernels out.
    """
    where = inquiry.case.localisation
    is_suspect = (
        where is not None
        and where.differs == "output"
        and not where.is_convicted
        and "convolution" in where.operation
        and searches_for_kernels(inquiry.case.records)
    )
    if not is_suspect or inquiry.is_varied or not inquiry.parts_again():
        return None
    condition, cause, said = _SEARCH_EXPERIMENT
    return inquiry.conclude(cause) if inquiry.is_cured_by(condition, said) else None


def _operation_itself(inquiry: _Inquiry) -> Diagnosis | None:
    where = inquiry.case.localisation
    if where is None or where.differs != "output" or not matters(inquiry.case):
        return None
    if where.made_by is None and where.operation.startswith(FROM_OUTSIDE):
        return None
    evidence = f"{call_of(where)} has equal inputs in both runs, and other results"
    if where.is_convicted:
        evidence = f"{call_of(where)}, executed again on the same inputs, gives another result"
    return inquiry.conclude("nondeterministic-operation", evidence)


def _what_was_left(inquiry: _Inquiry) -> Diagnosis | None:
    """See whether later runs agree: then the first one left something behind."""
    if inquiry.is_varied or inquiry.parts_again():
        return None
    left = ", ".join(inquiry.case.left_files[:5])
    inquiry.evidence.append("two runs that came after these two agree with each other")
    if left:
        return inquiry.conclude("cold-cache", f"the first run left files behind: {left}")
    return None


def _conditions(inquiry: _Inquiry) -> Diagnosis | None:
    """Hold one condition fixed in both runs after the other, and see whether they agree."""
    if inquiry.is_varied or not inquiry.parts_again():
        return None
    for condition, cause, said in _likeliest_first(inquiry.case):
        if inquiry.is_cured_by(condition, said):
            is_start = inquiry.case.difference.is_start
            if cause == "unseeded-random-numbers" and is_start:
                optimizer = inquiry.case.difference.optimizer
                is_late = drawn_before_seed(inquiry.case.records[0], optimizer) > 0
                cause = "seed-after-initialisation" if is_late else "unseeded-initialisation"
            _add_call(inquiry)
            return inquiry.conclude(cause)
    return None


def _likeliest_first(case: Case) -> list[tuple[str, str, str]]:
    """Return the experiments, the one that is likeliest to tell something before the others."""
    where = case.localisation
    likely = "hash-seed"
    if case.difference.stage == "hyperparameters":
        likely = "clock"
    elif where is not None and where.differs == "random state":
        likely = "unseeded-random-numbers"
    return sorted(_EXPERIMENTS, key=lambda experiment: experiment[1] != likely)


def _seeds(inquiry: _Inquiry) -> Diagnosis | None:
    mine, theirs = seeds_given(inquiry.case)
    is_blamed = mine != theirs and not inquiry.is_varied
    return inquiry.conclude("unseeded-random-numbers") if is_blamed else None


def _hyperparameters(inquiry: _Inquiry) -> Diagnosis | None:
    is_stage = inquiry.case.difference.stage == "hyperparameters"
    return inquiry.conclude("hyperparameters") if is_stage else None


def _operation_of(spelled: str) -> str:
    """Return the operation alone of `OPERATION at FILE:LINE in FUNCTION`."""
    return spelled.partition(" at ")[0]


def _random_numbers(inquiry: _Inquiry) -> Diagnosis | None:
    """Name the call that draws in one run and not in the other."""
    case, where = inquiry.case, inquiry.case.localisation
    is_drawing = (
        where is not None
        and where.differs == "operation"
        and where.values is not None
        and any(word in _operation_of(value) for value in where.values for word in _DRAWING)
    )
    if is_drawing and where is not None and where.values is not None:
        return inquiry.conclude(
            "random-numbers-consumed",
            f"one run calls {where.values[0]}, where the other calls {where.values[1]}",
        )
    if case.difference.stage in ("rng", "rng_python", "rng_numpy"):
        _add_call(inquiry)
        return inquiry.conclude("random-numbers-consumed", case.difference.meaning)
    return None


def _kernels(inquiry: _Inquiry) -> Diagnosis | None:
    case = inquiry.case
    stages = ("loss", "gradients", "clipped_gradients", "optimizer", "parameters")
    if case.difference.stage not in stages or case.localisation is not None or inquiry.is_varied:
        return None
    if not inquiry.parts_again():
        return None
    search = [_SEARCH_EXPERIMENT] if searches_for_kernels(case.records) else []
    for condition, cause, said in (*search, *_KERNEL_EXPERIMENTS):
        if inquiry.is_cured_by(condition, said):
            return inquiry.conclude(cause)
    return None


def _data(inquiry: _Inquiry) -> Diagnosis | None:
    case = inquiry.case
    if case.difference.stage != "batch":
        return None
    same = rows_are_the_same(case.records, case.difference.step)
    return None if same is None else inquiry.conclude("data-order" if same else "data-content")


def _control_flow(inquiry: _Inquiry) -> Diagnosis | None:
    where = inquiry.case.localisation
    if where is None:
        return None
    if where.differs == "operation" and where.values is not None:
        said = f"one run calls {where.values[0]}, where the other calls {where.values[1]}"
        if where.reaches_training:
            return inquiry.conclude("control-flow", said)
        inquiry.evidence.append(f"{said}, and is not known to train on what came of it")
        return None
    if not matters(inquiry.case):
        _add_call(inquiry)
        if not inquiry.case.difference.is_start:
            inquiry.evidence.append("nothing is known to be trained on what came of that call")
        return None
    if where.differs == "argument" and where.values is not None:
        return inquiry.conclude(
            "outside-value",
            f"{call_of(where)} was given {where.values[0]} in one run and {where.values[1]} in the "
            "other",
        )
    _add_call(inquiry)
    # What a later optimizer trains may have been made long before the step that was traced.
    is_older = inquiry.case.difference.is_start and where.step > 0
    if where.differs == "input" and where.made_by is None and not is_older:
        return inquiry.conclude(
            "outside-value",
            f"an input of {call_of(where)} comes from outside torch, and is not the same",
        )
    return None


def _add_call(inquiry: _Inquiry) -> None:
    where = inquiry.case.localisation
    if where is not None:
        inquiry.evidence.append(f"they part at {call_of(where)}: {where.differs}")
