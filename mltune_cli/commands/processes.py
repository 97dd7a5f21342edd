"""How many processes a command starts, checked before anything is started."""

import re

from mltune_cli.errors import UsageError
from mltune_cli.launching.devices import visible_gpus
from mltune_cli.launching.job import ProcessShape
from mltune_cli.recipe.schema import Recipe

_NODES = re.compile(r"(\d{1,6})(?::(\d{1,6}))?")


def process_shape(
    recipe: Recipe,
    *,
    per_node: int = 1,
    nodes: str = "1",
    node_rank: int | None = None,
    rendezvous: str | None = None,
    join_seconds: int = 300,
    max_restarts: int = 3,
) -> ProcessShape:
    """Return how many processes compute a run.

    Args:
        recipe: must have a micro-batch for each of them.
        per_node: processes on this machine.
        nodes: how many machines, or `MIN:MAX`.
        node_rank: which of them this one is.
        rendezvous: `HOST:PORT` where they meet.
        join_seconds: how long they wait for each other.
        max_restarts: how often dead processes are replaced.

    Raises:
        UsageError: the flags contradict each other, the recipe, or the number of GPUs.
    """
    least, most = _node_range(nodes)
    if most == 1:
        for flag, value in (("--node-rank", node_rank), ("--rdzv-endpoint", rendezvous)):
            if value is not None:
                raise UsageError(f"{flag}: has no meaning on one machine; add --nnodes or drop it")
    else:
        if rendezvous is None or node_rank is None:
            missing = "--rdzv-endpoint" if rendezvous is None else "--node-rank"
            raise UsageError(f"--nnodes {nodes}: needs {missing} as well")
        _require_endpoint(rendezvous)
        if node_rank >= most:
            raise UsageError(
                f"--node-rank {node_rank}: of {most} machines the last one is {most - 1}"
            )
    shape = ProcessShape(
        per_node=per_node,
        min_nodes=least,
        max_nodes=most,
        node_rank=node_rank or 0,
        rendezvous=rendezvous,
        join_seconds=join_seconds,
        max_restarts=max_restarts,
    )
    _require_work_for(shape, recipe)
    _require_devices_for(shape, recipe)
    return shape


def _node_range(nodes: str) -> tuple[int, int]:
    match = _NODES.fullmatch(nodes)
    least = int(match[1]) if match else 0
    most = int(match[2] or match[1]) if match else 0
    if not 1 <= least <= most:
        raise UsageError(f"--nnodes {nodes}: must be a number of machines, or MIN:MAX such as 1:2")
    return least, most


def _require_endpoint(rendezvous: str) -> None:
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"--rdzv-endpoint {rendezvous}: must be HOST:PORT of machine 0, such as 10.0.0.1:29400"
        )


def _require_work_for(shape: ProcessShape, recipe: Recipe) -> None:
    count = recipe.train.micro_batches_per_step
    if count < shape.most_processes:
        raise UsageError(
            f"--nproc-per-node: {shape.most_processes} processes are more than the {count} "
            "micro-batches of a step; start fewer, or raise train.micro_batches_per_step (which "
            "makes another recipe)"
        )


def _require_devices_for(shape: ProcessShape, recipe: Recipe) -> None:
    if shape.per_node == 1 or recipe.model.device == "cpu":
        return
    gpus = len(visible_gpus())
    if 0 < gpus < shape.per_node:
        raise UsageError(
            f"--nproc-per-node: {shape.per_node} processes need a GPU each, and there are {gpus}; "
            "start fewer, or set model.device to cpu"
        )
