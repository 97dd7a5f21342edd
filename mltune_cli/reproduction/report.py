"""The result of `repro-check`, as it is written to `report.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mltune_cli.errors import ExitCode

Verdict = Literal["reproducible", "different", "no_verdict"]
RunStatus = Literal["finished", "stopped", "failed"]

_STAGE_MEANINGS = {
    "model": "the base model's weights were not the same",
    "batch": "the rows or their tokens were not the same",
    "rng": "the random number generators were not in the same state",
    "rng_python": "something drew from Python's random numbers in one run and not in the other",
    "rng_numpy": "something drew from NumPy's random numbers in one run and not in the other",
    "loss": "the forward pass gave another loss from the same rows",
    "buffers": "what the model keeps beside its weights (running statistics) was not the same",
    "gradients": "the backward pass gave other gradients from the same loss",
    "clipped_gradients": "clipping gave other gradients",
    "hyperparameters": "the optimizer's settings were not the same",
    "optimizer": "the optimizer's state was not the same after the step",
    "parameters": "the trained parameters were not the same after the step",
    "missing": "one run took the step and the other did not",
    "resume": "the resumed run did not start from any state that the first run had been in",
    "order": "the optimizers took their steps in another order",
}


def stage_meaning(step: int, stage: str) -> str:
    """Say what it means that `stage` is the first to differ, at the first differing step."""
    if step == 0 and stage == "parameters":
        return "the adapter did not start from the same values"
    return _STAGE_MEANINGS.get(stage, "the finished runs' files are not the same")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FirstDifference(_Frozen):
    """The first place at which two runs part.

    Attributes:
        step: optimizer step; 0 is the state before the first.
        is_start: it is in what an optimizer began with: before the first step, or, of one that
            came later, within `step`.
        stage: the first stage of that step that differs.
        stages: every stage of that step that differs, in the order of computation.
        runs: the two runs, counted from 1.
        values: the digests of `stage` in the two runs.
        process: of a command that has several: `main`, `rank-3`, or `child-2` as in the first run.
        optimizer: of a command, which may have several.
    """

    step: int
    stage: str
    stages: list[str]
    runs: tuple[int, int]
    values: tuple[str, str] | None
    process: str | None = None
    optimizer: str | None = None
    is_start: bool = False

    @property
    def meaning(self) -> str:
        """What it means that this stage differs first."""
        if self.process is not None and self.is_start and self.stage == "parameters":
            return "the trained parameters did not start from the same values"
        return stage_meaning(self.step, self.stage)


Phase = Literal["forward", "backward", "optimizer", "elsewhere"]
Differing = Literal["operation", "argument", "input", "random state", "output"]


class TensorDifference(_Frozen):
    """How far apart one tensor of an operation is in the two runs.

    Attributes:
        name: `input 0`, `output 1`, in the order in which the operation takes and gives tensors.
        differing: elements whose bits differ; None where the values were not kept.
        largest_ulps: the largest distance in units in the last place; None for what has none, or
            where a NaN stands against a number.
    """

    name: str
    dtype: str
    shape: list[int]
    elements: int
    differing: int | None = None
    largest_ulps: int | None = None
    largest_difference: float | None = None


class Localisation(_Frozen):
    """The first operation of the differing step at which the two runs part.

    Attributes:
        step: the step that was traced.
        record: place of the operation in the trace, from 0.
        operation: as torch's dispatcher calls it, such as `aten.mm.default`.
        module: path of the module whose forward called it, or, in backward, belongs to it.
        node: the autograd node, in backward.
        differs: what parts first: another operation was called; another number was passed; an
            input tensor, the generator's state, or, from equal inputs, the output differ.
        frame: innermost line of the user's own code, `FILE:LINE in FUNCTION`.
        library_frame: innermost line outside torch, where that is another one.
        reads_uninitialised: it reads memory that nothing had written.
        is_convicted: executed twice on the same inputs, it gave two results.
        was_written_outside: an input differs although the operation that made it gave equal
            results: something wrote to its memory that torch did not see.
        made_by: the operation that made the differing input; None where it came from outside.
        or_at: a later call that parts because of this one, or by itself: Python, which has read a
            number of this one, gave it something else.
        reaches_training: the loss, the backward pass or the optimizer reads what came of it, as far
            as torch sees.
    """

    step: int
    process: str
    record: int
    operation: str
    phase: Phase
    module: str | None
    node: str | None
    differs: Differing
    values: tuple[str, str] | None = None
    tensors: list[TensorDifference] = []
    frame: str | None = None
    library_frame: str | None = None
    reads_uninitialised: bool = False
    is_convicted: bool = False
    was_written_outside: bool = False
    made_by: str | None = None
    or_at: str | None = None
    reaches_training: bool = True


class Diagnosis(_Frozen):
    """Why the runs part, as far as the evidence goes.

    Attributes:
        cause: name of a row of `docs/causes.md`, or `unknown`.
        title: the cause in a few words.
        evidence: what was observed; one sentence each.
        remedy: what to do.
    """

    cause: str
    title: str
    evidence: list[str]
    remedy: str


class RunOutcome(_Frozen):
    """How one of the compared runs ended.

    Attributes:
        status: finished; stopped, when a difference made the rest pointless; failed.
        steps: steps whose digests arrived.
        error: what stopped a failed run.
    """

    number: int
    folder: str
    status: RunStatus
    steps: int
    last_loss: float | None
    error: str | None


GoldenVerdict = Literal["reproduced", "code_changed", "environment_changed", "not_deterministic"]


class GoldenChange(_Frozen):
    """Something about the training, or what it ran on, that is not what it was.

    Attributes:
        kind: what it belongs to.
        name: a dotted key of the recipe, a fact of the environment, `model`, `training rows`.
    """

    kind: Literal["training", "recipe", "input", "environment", "mltune"]
    name: str
    was: str
    now: str

    @property
    def sentence(self) -> str:
        """The change in words."""
        place = {
            "training": self.name,
            "recipe": f"recipe, {self.name}",
            "input": f"content of the {self.name}",
            "environment": f"environment, {self.name}",
            "mltune": "mltune",
        }[self.kind]
        return f"{place}: {self.was} is now {self.now}"


class GoldenComparison(_Frozen):
    """The runs, held against what an earlier one gave.

    Attributes:
        source: the golden file, or the run.
        verdict: `not_deterministic` where the runs differ among themselves, so that nobody's change
            is to blame; `environment_changed` where the source has nothing for this environment
            and what it has for others is not equal.
        environment_class: of the entry that the runs were held against; None where there was none.
        commit: that the entry was recorded at, `+` at its end where the folder was dirty.
        steps: of the entry.
        last_loss: of the entry.
        first_difference: where the runs part from the entry, the entry first; its `runs` are 0, for
            the entry, and 1. None unless the verdict is `code_changed`.
        changes: what else is not what it was.
        record_command: what makes these runs the golden.
    """

    source: str
    verdict: GoldenVerdict
    environment_class: str | None
    commit: str | None = None
    steps: int | None = None
    last_loss: float | None = None
    first_difference: FirstDifference | None = None
    changes: list[GoldenChange] = []
    record_command: str


class ReproductionReport(_Frozen):
    """What `repro-check` found.

    Attributes:
        recipe_name: the recipe, or the command that was run instead of one, without its secrets.
        compared_steps: the last step whose digests were equal in all runs.
        first_difference: where runs parted; None unless the verdict is `different`.
        variation: conditions that the first run did not have and the others had, `NAME=VALUE`.
        localisation: the operation at which they part; None where it was not looked for or found.
        tensors: names of the differing stage's first tensors that differ, where they are known: by
            group and place in the optimizer, and by name in the model.
        diagnosis: the cause; None unless the verdict is `different`.
        golden: what came of `--against`; None without it, and where a run failed.
        recorded: the golden file that these runs were written into.
        notes: what is worth knowing whatever the verdict is; one sentence each.
        reason: why there is no verdict; None unless the verdict is `no_verdict`.
        seconds: wall time of the whole check.
    """

    schema_name: Literal["mltune.report/1"] = "mltune.report/1"
    verdict: Verdict
    recipe_name: str
    recipe_digest: str | None
    environment_class: str | None
    compared_steps: int
    first_difference: FirstDifference | None
    variation: list[str] = []
    localisation: Localisation | None = None
    tensors: list[str] = []
    diagnosis: Diagnosis | None = None
    golden: GoldenComparison | None = None
    recorded: str | None = None
    notes: list[str] = []
    reason: str | None
    runs: list[RunOutcome]
    seconds: float

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that this verdict answers with."""
        return {
            "reproducible": ExitCode.OK,
            "different": ExitCode.NEGATIVE,
            "no_verdict": ExitCode.NO_VERDICT,
        }[self.verdict]
