"""Shared memory: where loader workers and NCCL hand things over."""

from collections.abc import Sequence
from pathlib import Path

from mltune_cli.diagnosis.finding import Check, Finding, in_order, judged, known
from mltune_cli.diagnosis.machine import is_container
from mltune_cli.diagnosis.places import free_bytes
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.memory_estimate import gibibytes

_FOLDER = Path("/dev/shm")  # noqa: S108 - the place itself is what is looked at
# What Docker gives a container unless it is asked for more; NCCL alone may take as much.
_LEAST_BYTES = 64 * 2**20
# A micro-batch is four tensors of eight-byte numbers; each worker keeps two of them ready.
_BYTES_PER_TOKEN = 4 * 8
_READY = 2


def look(subject: Subject) -> Sequence[Finding]:
    """Compare what is free with what loader workers hand over."""
    recipe = subject.recipe
    workers = recipe.data.loader_workers
    if not _FOLDER.is_dir():
        return [known(f"there is no {_FOLDER} on this system")]
    free = free_bytes(_FOLDER)
    tokens = recipe.train.micro_batch_size * recipe.data.max_length
    needed = workers * _READY * tokens * _BYTES_PER_TOKEN
    if free >= max(needed, _LEAST_BYTES):
        return [in_order(f"{_FOLDER} has {gibibytes(free)} free")]
    wanted = max(2 * 2**30, 2 * needed)
    size = f"{-(-wanted // 2**30)}g"
    remedy = "make it larger, as root, and remove what ended programs left there"
    if is_container():
        remedy = f"start the container with --shm-size={size} or --ipc=host"
    who = f"{workers} loader workers hand micro-batches over there" if workers else "NCCL and "
    if not workers:
        who += "loader workers, where a recipe has them, hand tensors over there"
    return [
        judged(
            free < needed,
            f"{_FOLDER} has {gibibytes(free)} free",
            f"{who}; without room they end with a bus error",
            remedy,
            command=f"mount -o remount,size={size} {_FOLDER}",
        )
    ]


CHECK = Check("shared-memory", "shared memory", look)
