"""The processes that compute one run together, and what they tell each other."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from mltune_cli.errors import RecipeValueError
from mltune_cli.training.reduction import share_of

# Long enough for the first process to tokenise a large data set or to write a large checkpoint
# while the others wait. A process that died is noticed at once, by its closed connection.
_PATIENCE = timedelta(hours=2)
# gloo may wait for a connection that never comes, for five times as long as it is given; then the
# launcher starts all processes again.
_CONNECT = timedelta(seconds=10)


class LostProcessError(Exception):
    """Another process of this run is gone, so nothing can be agreed on; the launcher goes on."""


@dataclass(frozen=True)
class Turn:
    """One micro-batch that a process computes.

    Attributes:
        index: of the micro-batch in its step.
        counts: False where it is computed once more, and thrown away, only to keep step with
            processes that have one more: with a sharded model every forward pass is a meeting.
    """

    index: int
    counts: bool


@dataclass(frozen=True)
class Processes:
    """This process among the others.

    Attributes:
        rank: from 0, in the order of nodes and then of processes on a node; 0 writes the files.
        local_rank: from 0 on each node.
        torch_ranks: for each of our ranks the rank that torch knows the process by. A rendezvous
            hands those out as nodes arrive; ours stay with the machine that has the files.
        device: that this process computes on.
    """

    rank: int
    local_rank: int
    torch_ranks: tuple[int, ...]
    device: torch.device

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self.torch_ranks)

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    @property
    def leads_node(self) -> bool:
        """Whether this process speaks for its node."""
        return self.local_rank == 0

    def shares(self, count: int) -> list[range]:
        """Return every process's share of `count` micro-batches."""
        return [share_of(rank, self.size, count) for rank in range(self.size)]

    def turns(self, count: int, *, in_step: bool) -> list[Turn]:
        """Return what this process computes of `count` micro-batches, in order.

        Args:
            count: micro-batches of the step, or of the held-out rows.
            in_step: whether every process must have as many turns as every other.
        """
        shares = self.shares(count)
        turns = [Turn(index, counts=True) for index in shares[self.rank]]
        if in_step:
            missing = max(map(len, shares)) - len(turns)
            spare = turns[-1].index if turns else 0
            turns += [Turn(spare, counts=False)] * missing
        return turns

    def gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the tensors of all processes, in the order of their ranks.

        Args:
            tensor: of the same shape and dtype everywhere, on `device`.

        Raises:
            LostProcessError: a process is gone.
        """
        if self.size == 1:
            return [tensor]
        gathered = tensor.new_empty((self.size, *tensor.shape))
        with _noticing_losses():
            dist.all_gather_into_tensor(gathered.flatten(0, 1), tensor.contiguous())
        return [gathered[rank] for rank in self.torch_ranks]

    def gather_words(self, words: Sequence[int]) -> list[list[int]]:
        """Return the 64-bit words of all processes; each sends as many as the others.

        Raises:
            LostProcessError: a process is gone.
        """
        signed = [word - (1 << 64) if word >> 63 else word for word in words]
        tensor = torch.tensor(signed, dtype=torch.int64, device=self.device)
        rows = [row.tolist() for row in self.gather(tensor)]
        return [[word % (1 << 64) for word in row] for row in rows]

    def agree(self, word: int) -> int:
        """Return the largest of the words that the processes say, the same everywhere."""
        return max(row[0] for row in self.gather_words([word]))

    def barrier(self) -> None:
        """Wait for all processes."""
        self.agree(0)

    @contextlib.contextmanager
    def node_leader_first(self) -> Iterator[None]:
        """Let the first process of each node through, then its others: they find its cache."""
        if not self.leads_node:
            self.barrier()
        yield
        if self.leads_node:
            self.barrier()

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite a tensor on `device` with the writer's.

        Raises:
            LostProcessError: a process is gone.
        """
        if self.size > 1:
            with _noticing_losses():
                dist.broadcast(tensor, src=self.torch_ranks[0])

    def gather_values(self, value: Any) -> list[Any]:
        """Return the values of all processes, made of JSON's types, in the order of their ranks.

        Raises:
            LostProcessError: a process is gone.
        """
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        lengths = [row[0] for row in self.gather_words([len(text)])]
        padded = bytearray(text.ljust(max(lengths)))
        sent = torch.frombuffer(padded, dtype=torch.uint8).to(self.device)
        return [json.loads(bytes(row.tolist())) for row in self.gather(sent)]


def alone(device: torch.device) -> Processes:
    """Return the only process of a run."""
    return Processes(0, 0, (0,), device)


def join_processes(device_type: str, node_rank: int) -> Processes:
    """Meet the other processes that the elastic launcher started.

    Args:
        device_type: `cpu` (they talk through gloo) or `cuda` (through NCCL).
        node_rank: of this machine, as its user numbered it.

    Raises:
        LostProcessError: a process is gone.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    with _noticing_losses():
        rank, size = _connect(device)
    in_torch_order = Processes(rank, local_rank, tuple(range(size)), device)
    places = [tuple(row) for row in in_torch_order.gather_words([node_rank, local_rank])]
    order = sorted(range(size), key=places.__getitem__)
    return Processes(order.index(rank), local_rank, tuple(order), device)


def _connect(device: torch.device) -> tuple[int, int]:
    """Wait until all processes are there, then connect them; return torch's rank and size."""
    store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    # Processes come to this point at different times, since imports take long.
    store.set(f"here/{rank}", device.type)
    keys = [f"here/{other}" for other in range(size)]
    store.wait(keys, _PATIENCE)
    kinds = {store.get(key).decode() for key in keys}
    if len(kinds) > 1:
        raise RecipeValueError(
            "model.device", f"is {' and '.join(sorted(kinds))} on different machines; set it"
        )
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE if on_gpu else _CONNECT,
        device_id=device if on_gpu else None,
    )
    if not on_gpu:
        distributed_c10d._set_pg_timeout(_PATIENCE)
    return rank, size


@contextlib.contextmanager
def _noticing_losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_loss_of_process(error):
            raise LostProcessError(str(error)) from None
        raise


def is_loss_of_process(error: BaseException) -> bool:
    """Tell whether an error says that another process is gone, or the way to it."""
    if isinstance(error, LostProcessError | dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo/" in text or "NCCL" in text)
