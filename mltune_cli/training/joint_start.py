"""All processes of a run start at the same place: one folder, one state, one past."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mltune_cli.errors import ExitCode, MltuneError, UsageError
from mltune_cli.launching.events import EventPipe, Failed
from mltune_cli.launching.failures import explained
from mltune_cli.launching.job import TrainingJob
from mltune_cli.run_folder import EVALUATION_LOG, RunLock
from mltune_cli.training.checkpoint import Identity, Provenance, put_back
from mltune_cli.training.environment import environment_facts
from mltune_cli.training.evaluation import Evaluation
from mltune_cli.training.processes import Processes
from mltune_cli.training.resuming import EnteredFolder, enter_folder, run_identity
from mltune_cli.training.setup import PreparedRun


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        folder: the run folder, as the first process names it.
        lock: holds it for the first process; None in the others.
        provenance: of the steps before and of those to come.
        evaluations: of the steps before, in order.
        finished_loss: the last loss of a run that has nothing left to do, else None.
        branched_from: told to the first process alone; see `EnteredFolder`.
    """

    folder: Path
    lock: RunLock | None
    provenance: Provenance
    evaluations: list[Evaluation]
    finished_loss: float | None = None
    branched_from: Path | None = None


def start_together(
    job: TrainingJob, run: PreparedRun, pipe: EventPipe, on_folder: Callable[[Path], None]
) -> Start:
    """Claim the run folder in the first process, and bring all to the state that it starts from.

    Args:
        job: what to train.
        run: prepared; its state is overwritten where the run goes on from a checkpoint.
        pipe: where notices go.
        on_folder: told of the run folder in the first process, as soon as it is ours.

    Raises:
        UsageError: folder or checkpoint cannot be used, or a process has another model or data.
        NoVerdictError: the first process cannot start.
        LostProcessError: another process is gone.
    """
    processes = run.processes
    _require_same_input(run)
    entered, failure = None, None
    if processes.is_writer:
        try:
            entered = enter_folder(job, run, pipe)
            on_folder(entered.path)
        except (MltuneError, OSError) as error:
            failure = error
    told = _past(entered) if entered else _refusal(failure)
    past = processes.gather_values(told)[0]
    if failure is not None:
        raise failure
    if "refusal" in past:
        # In the first one's words: whichever process is heard first explains the run.
        raise explained(Failed(past["exit_code"], past["refusal"]))
    _spread_state(run, past, entered)
    here = environment_facts(processes.device).environment_class()
    before = Provenance(tuple(past["environment_classes"]), tuple(past["process_counts"]))
    return Start(
        Path(past["folder"]),
        entered.lock if entered else None,
        before.and_of(processes.gather_values(here), processes.size),
        [Evaluation(**fields) for fields in past["evaluations"]],
        past["finished_loss"],
        entered.branched_from if entered else None,
    )


def _require_same_input(run: PreparedRun) -> None:
    """Refuse to train together with a process that read another model, data set or recipe.

    Raises:
        UsageError: names what differs.
    """
    mine = _joint_identity(run)
    for rank, fields in enumerate(run.processes.gather_values([mine.recipe, mine.digests])):
        changes = mine.changes_from(Identity(*fields))
        if changes:
            raise UsageError(
                f"process {rank} and process {run.processes.rank} do not train the same: "
                f"{changes[0]}; give every node the same recipe, model and data"
            )


def _joint_identity(run: PreparedRun) -> Identity:
    """Return what processes must have alike: what decides bits, and when and how they meet."""
    identity = run_identity(run)
    meetings = {f"evaluate.{key}": v for key, v in run.recipe.evaluate.model_dump().items()}
    meetings["model.sharding"] = run.recipe.model.sharding
    if run.state.is_divided:  # then a checkpoint is a meeting as well
        meetings["checkpoint.every_steps"] = run.recipe.checkpoint.every_steps
    held_out = run.validation_data.summary.digest if run.validation_data else ""
    return Identity(identity.recipe | meetings, identity.digests | {"validation data": held_out})


def _refusal(failure: Exception | None) -> dict[str, Any]:
    """Return why the first process cannot start, for the others to say it as well."""
    if isinstance(failure, MltuneError):
        return {"refusal": failure.message, "exit_code": int(failure.exit_code)}
    return {
        "refusal": f"the first process could not start: {failure}",
        "exit_code": int(ExitCode.NO_VERDICT),
    }


def _past(entered: EnteredFolder) -> dict[str, Any]:
    """Return what the other processes must be told, in JSON's types."""
    checkpoint = entered.checkpoint
    finished = entered.finished
    step = checkpoint.step if checkpoint else 0
    provenance = checkpoint.provenance if checkpoint else Provenance()
    log = (entered.branched_from or entered.path) / EVALUATION_LOG
    return {
        "folder": str(entered.path),
        "step": step,
        "last_loss": checkpoint.last_loss if checkpoint else None,
        **asdict(provenance),
        "evaluations": _evaluations_until(log, step) if step else [],
        "finished_loss": (finished.result.last_loss or 0.0) if finished else None,
        "tensors": {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in (entered.tensors or {}).items()
        },
    }


def _evaluations_until(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            break  # the torn last line of a run that was killed
        if fields["step"] > step:
            break
        found.append({"step": fields["step"], "loss": fields["loss"]})
    return found


def _spread_state(run: PreparedRun, past: dict[str, Any], entered: EnteredFolder | None) -> None:
    """Bring every process to the first one's step, tensor by tensor."""
    if not past["tensors"]:
        return
    # One at a time: a divided model's state need not fit on one device.
    tensors = (
        (name, _spread(run.processes, dtype, shape, entered, name))
        for name, (dtype, shape) in past["tensors"].items()
    )
    put_back(run.state, past["step"], past["last_loss"], tensors)


def _spread(
    processes: Processes, dtype: str, shape: list[int], entered: EnteredFolder | None, name: str
) -> torch.Tensor:
    if entered is not None and entered.tensors is not None:
        tensor = entered.tensors[name].to(processes.device)
    else:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=processes.device)
    processes.broadcast(tensor)
    return tensor
