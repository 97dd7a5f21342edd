"""What a worker is told to do, as one JSON object."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from mltune_cli.manifest import GitFacts
from mltune_cli.recipe.schema import Recipe


class ProcessShape(BaseModel):
    """How many processes compute a run, and how they find each other.

    Attributes:
        per_node: on each machine.
        min_nodes: machines without which training does not start, or go on.
        max_nodes: machines that may take part.
        node_rank: of this machine, from 0; machine 0 hosts the rendezvous and writes the files.
        rendezvous: `HOST:PORT` on machine 0; None on a single machine.
        max_restarts: how often processes that died are replaced before training goes on with one
            fewer.
        join_seconds: how long machines wait for each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_node: int = 1
    min_nodes: int = 1
    max_nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    max_restarts: int = 3
    join_seconds: int = 300

    @property
    def is_single(self) -> bool:
        """Whether one process computes the run alone."""
        return self.per_node == 1 and self.max_nodes == 1

    @property
    def most_processes(self) -> int:
        """How many processes there are when all machines take part."""
        return self.per_node * self.max_nodes


class TraceOrder(BaseModel):
    """One step that is to be traced; see `witness.trace_record.TraceRequest`.

    Attributes:
        folder: where `trace/` is made, outside the run folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    step: int
    executions: int = 1
    keep_from: int = 0
    keep_bytes: int = 1 << 29


class TrainingJob(BaseModel):
    """One training run.

    Attributes:
        recipe: checked; the worker fills in what data and device decide.
        origins: where each value came from, for errors and the manifest.
        recipe_name: stem of the run folder's name.
        runs_folder: where the next free folder is made when `recipe.output_dir` is None.
        overwrite: whether an earlier run in `output_dir` may be replaced.
        resume: go on from the newest complete checkpoint in `output_dir`, or from the start.
        resume_from: go on from this checkpoint's folder; with `resume`, where there is no newer.
        git: commit of the folder that the command was started in.
        processes: that compute the run; their number changes no bit.
        trace: a step to trace; the run goes on after it, until it is ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    origins: dict[str, str]
    recipe_name: str
    runs_folder: str
    overwrite: bool = False
    resume: bool = False
    resume_from: str | None = None
    git: GitFacts | None = None
    processes: ProcessShape = ProcessShape()
    trace: TraceOrder | None = None
