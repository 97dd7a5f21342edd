"""Processes of one run start from one folder and one state, or all refuse in the same words.

The processes are threads here: `start_together` talks to the others through `gather` alone.
"""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mltune_cli.digests import file_digest
from mltune_cli.errors import MltuneError, NoVerdictError, StoppedBySignalError, UsageError
from mltune_cli.launching.events import EventPipe
from mltune_cli.launching.job import TrainingJob
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training import joint_start
from mltune_cli.training.checkpoint import snapshot
from mltune_cli.training.evaluation import Evaluation
from mltune_cli.training.joint_start import Start, start_together
from mltune_cli.training.loop import Surroundings, train
from mltune_cli.training.processes import Processes
from mltune_cli.training.setup import PreparedRun, prepare_run

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SmokeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


@dataclass
class Room:
    """Where the threads meet: nobody reads before all have written."""

    size: int
    table: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=60)


@dataclass(frozen=True)
class InThreads(Processes):
    """Processes whose tensors lie on a table in the middle."""

    room: Room = field(default_factory=lambda: Room(1))

    def gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        self.room.table[self.rank] = tensor.clone()
        self.room.barrier.wait()
        rows = [self.room.table[rank] for rank in range(self.size)]
        self.room.barrier.wait()
        assert len({row.shape for row in rows}) == 1, "gloo needs equal shapes"
        return rows

    def broadcast(self, tensor: torch.Tensor) -> None:
        if self.is_writer:
            self.room.table[-1] = tensor.clone()
        self.room.barrier.wait()
        tensor.copy_(self.room.table[-1])
        self.room.barrier.wait()


def job_for(folder: Path, recipe: Recipe, **values: Any) -> TrainingJob:
    output = recipe.with_values({"output_dir": str(folder)})
    return TrainingJob(recipe=output, origins={}, recipe_name="t", runs_folder="/none", **values)


def start_all(
    jobs: Sequence[TrainingJob], runs: Sequence[PreparedRun]
) -> list[Start | BaseException]:
    """Start the runs as the processes of one, side by side; return what each comes to."""
    size = len(runs)
    room = Room(size)

    def start(rank: int) -> Start | BaseException:
        processes = InThreads(rank, rank, tuple(range(size)), CPU, room)
        run = replace(runs[rank], processes=processes)
        try:
            return start_together(jobs[rank], run, EventPipe(None), lambda folder: None)
        except (MltuneError, OSError, StoppedBySignalError) as error:
            return error

    with ThreadPoolExecutor(size) as threads:
        started = list(threads.map(start, range(size)))
    for one in started:
        if isinstance(one, Start) and one.lock is not None:
            one.lock.close()
    return started


@pytest.fixture(scope="module")
def base() -> "Callable[..., PreparedRun]":
    """Prepare a run; the model and the data are read once for each recipe."""
    prepared: dict[str, PreparedRun] = {}

    def prepare(recipe: Recipe) -> PreparedRun:
        key = recipe.model_dump_json()
        if key not in prepared:
            prepared[key] = prepare_run(recipe)
        return prepared[key]

    return prepare


@pytest.fixture
def halfway(smoke_recipe: SmokeRecipe, trained_once: Path, tmp_path: Path) -> tuple[Recipe, Path]:
    """A run of 4 steps that was cut in step 4, after the checkpoint of step 2."""
    recipe = smoke_recipe(
        train__max_steps=4, evaluate__every_steps=1, checkpoint__every_steps=2, checkpoint__keep=9
    )
    whole = trained_once / "whole"
    if not whole.exists():
        train(job_for(whole, recipe), Surroundings(EventPipe(None)))
    folder = Path(shutil.copytree(whole, tmp_path / "halfway"))
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    shutil.rmtree(folder / "adapter")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["result"] = {"status": "running", "steps": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return recipe, folder


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs it leaves the whole run."""
    return tmp_path_factory.mktemp("trained")


def test_the_writer_alone_claims_the_folder_and_names_it_to_all(
    smoke_recipe: SmokeRecipe, base: Any, tmp_path: Path
) -> None:
    """The others may stand on a machine whose folder of that name is something else."""
    recipe = smoke_recipe()
    jobs = [job_for(tmp_path / name, recipe) for name in ("run", "elsewhere", "elsewhere")]
    started = start_all(jobs, [base(recipe)] * 3)
    assert all(isinstance(one, Start) for one in started), started
    assert {one.folder for one in started} == {tmp_path / "run"}
    assert [one.lock is not None for one in started] == [True, False, False]
    assert {one.provenance for one in started} == {started[0].provenance}
    assert started[0].provenance.process_counts == (3,)
    assert [one.evaluations for one in started] == [[], [], []]
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"reproducibility__seed": 3}, "reproducibility.seed (was "),
        ({"train__learning_rate": 0.006}, "train.learning_rate (was "),
        ({"data__train": "mltune/repro_dataset/val.jsonl"}, "train"),
        # These decide no bit, and yet when processes have to meet, and over what.
        ({"evaluate__every_steps": 2}, "evaluate.every_steps (was "),
        ({"data__validation": "mltune/repro_dataset/train.jsonl"}, "validation data (was "),
        ({"model__sharding": "fsdp"}, "model.sharding (was "),
        ({"evaluate__keep_best": False}, "evaluate.keep_best (was "),
    ],
)
@pytest.mark.parametrize("odd", [0, 1])
def test_another_recipe_or_other_data_is_refused_by_all_before_anything_is_made(
    smoke_recipe: SmokeRecipe,
    base: Any,
    tmp_path: Path,
    change: dict[str, Any],
    named: str,
    odd: int,
) -> None:
    recipes = [smoke_recipe(), smoke_recipe()]
    recipes[odd] = smoke_recipe(**change)
    jobs = [job_for(tmp_path / "run", recipe) for recipe in recipes]
    refused = start_all(jobs, [base(recipe) for recipe in recipes])
    assert [type(one) for one in refused] == [UsageError, UsageError], refused
    for rank, error in enumerate(refused):
        assert error.message.startswith(f"process {1 - rank} and process {rank} do not train the ")
        assert named in error.message
    assert not (tmp_path / "run").exists()


def test_what_each_machine_may_choose_for_itself_is_not_compared(
    smoke_recipe: SmokeRecipe, base: Any, tmp_path: Path
) -> None:
    recipes = [
        smoke_recipe(),
        smoke_recipe(data__loader_workers=2, checkpoint__every_steps=7, log__every_steps=5),
    ]
    jobs = [job_for(tmp_path / "run", recipe) for recipe in recipes]
    started = start_all(jobs, [base(recipe) for recipe in recipes])
    assert all(isinstance(one, Start) for one in started), started


def test_all_go_on_from_the_writers_checkpoint(
    halfway: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """Three processes, two of which have no such folder, come to the same state, bit for bit."""
    recipe, folder = halfway
    runs = [prepare_run(recipe) for _ in range(3)]
    for parameter in runs[2].state.parameters.values():
        parameter.data.fill_(7.0)  # nothing of what they had before may stay
    jobs = [job_for(path, recipe, resume=True) for path in (folder, tmp_path / "b", tmp_path / "c")]
    started = start_all(jobs, runs)
    assert all(isinstance(one, Start) for one in started), started
    assert [run.state.step for run in runs] == [2, 2, 2]
    taken = [snapshot(run.state) for run in runs]
    assert any(name.startswith("optimizer.exp_avg") for name in taken[0].tensors)
    for other in taken[1:]:
        assert other.last_loss == taken[0].last_loss
        assert other.tensors.keys() == taken[0].tensors.keys()
        for name, tensor in taken[0].tensors.items():
            assert torch.equal(tensor, other.tensors[name]), name
    lines = (folder / "evaluation_log.jsonl").read_text().splitlines()
    fields = [json.loads(line) for line in lines][:3]
    assert [one["step"] for one in fields] == [0, 1, 2]
    told = [Evaluation(one["step"], one["loss"]) for one in fields]
    assert [one.evaluations for one in started] == [told] * 3, "not those of steps 3 and 4"


def test_a_branch_is_an_empty_folder_until_it_has_a_manifest(
    halfway: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """Killed here, it would hold the logs of a run and not be one, and be refused ever after."""
    recipe, folder = halfway
    checkpoint = str(folder / "checkpoints" / "step-000002")
    for _ in range(2):  # the first is gone without a word
        job = job_for(tmp_path / "branch", recipe, resume_from=checkpoint)
        first, second = start_all([job] * 2, [prepare_run(recipe), prepare_run(recipe)])
        assert isinstance(first, Start), first
        assert [*(tmp_path / "branch").iterdir()] == []
        assert (first.branched_from, second.branched_from) == (folder, None)
        assert [one.step for one in first.evaluations] == [0, 1, 2]
        assert first.evaluations == second.evaluations


@pytest.mark.parametrize(("counts", "expected"), [([3, 5], (2, 3, 5)), ([2], (2,)), (None, (2,))])
def test_all_processes_that_took_a_step_are_counted(
    halfway: tuple[Recipe, Path], counts: list[int] | None, expected: tuple[int, ...]
) -> None:
    """A checkpoint of an mltune that did not count them, None, is gone on from all the same."""
    recipe, folder = halfway
    chosen = folder / "checkpoints" / "step-000002"
    fields = json.loads((chosen / "state.json").read_text())
    assert fields.pop("process_counts") == [1]
    if counts is not None:
        fields["process_counts"] = counts
    (chosen / "state.json").write_text(json.dumps(fields))
    seal = json.loads((chosen / "complete.json").read_text())
    seal["state.json"] = file_digest(chosen / "state.json")
    (chosen / "complete.json").write_text(json.dumps(seal))
    jobs = [job_for(folder, recipe, resume=True)] * 2
    started = start_all(jobs, [prepare_run(recipe), prepare_run(recipe)])
    assert [one.provenance.process_counts for one in started] == [expected] * 2


@pytest.mark.parametrize("tail", [b'{"step":2,"lo', b"", b'{"step":1,"loss":NaN}\n'])
def test_a_log_that_was_torn_tells_of_whole_lines(
    halfway: tuple[Recipe, Path], tail: bytes
) -> None:
    recipe, folder = halfway
    log = folder / "evaluation_log.jsonl"
    first = log.read_bytes().splitlines(keepends=True)[0]
    log.write_bytes(first + tail)
    (started,) = start_all([job_for(folder, recipe, resume=True)], [prepare_run(recipe)])
    assert isinstance(started, Start), started
    expected = [0, 1] if tail.endswith(b"\n") else [0]
    assert [one.step for one in started.evaluations] == expected


def test_the_writers_refusal_is_everybodys(
    halfway: tuple[Recipe, Path], smoke_recipe: SmokeRecipe, base: Any
) -> None:
    """Whichever process is heard first, the user is told the same, with the same exit code."""
    recipe = halfway[0].with_values({"reproducibility.seed": 3})
    jobs = [job_for(halfway[1], recipe, resume=True)] * 3
    before = {p: p.read_bytes() for p in halfway[1].rglob("*") if p.is_file() and p.name != ".lock"}
    refused = start_all(jobs, [base(recipe)] * 3)
    assert [type(one) for one in refused] == [UsageError] * 3, refused
    assert {one.message for one in refused} == {refused[0].message}
    assert "reproducibility.seed (was 20, is 3)" in refused[0].message
    after = {p: p.read_bytes() for p in halfway[1].rglob("*") if p.is_file() and p.name != ".lock"}
    assert before == after


def test_a_disk_that_fails_the_writer_is_told_to_all(
    smoke_recipe: SmokeRecipe, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(joint_start, "enter_folder", fail)
    recipe = smoke_recipe()
    first, second = start_all([job_for(tmp_path / "run", recipe)] * 2, [base(recipe)] * 2)
    assert isinstance(first, OSError)
    assert isinstance(second, NoVerdictError)
    assert "the first process could not start: [Errno 5] Input/output error" in second.message


def test_a_finished_run_is_finished_for_all(
    smoke_recipe: SmokeRecipe, base: Any, tmp_path: Path
) -> None:
    recipe = smoke_recipe()
    train(job_for(tmp_path / "run", recipe), Surroundings(EventPipe(None)))
    last_loss = float((tmp_path / "run" / "last_loss.txt").read_text())
    jobs = [job_for(tmp_path / "run", recipe, resume=True)] * 2
    started = start_all(jobs, [base(recipe)] * 2)
    assert [one.finished_loss for one in started] == [last_loss, last_loss]
