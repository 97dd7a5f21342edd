"""One step of our own training under the operation trace."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from mltune_cli.launching.job import TraceOrder
from mltune_cli.witness.trace import open_trace
from mltune_cli.witness.trace_record import TraceRequest


@contextlib.contextmanager
def traced(
    order: TraceOrder | None, step: int, known: Iterable[torch.Tensor] = ()
) -> Iterator[None]:
    """Trace a block if it is the step that the order names.

    Args:
        order: which step is traced; None for none.
        step: that the block takes; 0 for all that comes before the first.
        known: tensors that the witness of the step before covers.

    Raises:
        OSError: the trace cannot be written.
    """
    if order is None or order.step != step:
        yield
        return
    request = TraceRequest(order.step, order.executions, order.keep_from, order.keep_bytes)
    rank = os.environ.get("RANK")
    trace = open_trace(Path(order.folder), "main" if rank is None else f"rank-{rank}", request)
    note = trace.sites.note_optimizer
    hooks = (
        register_optimizer_step_pre_hook(lambda *_: note(begins=True)),
        register_optimizer_step_post_hook(lambda *_: note(begins=False)),
    )
    trace.begin(known)
    try:
        yield
    finally:
        trace.finish()
        for hook in hooks:
            hook.remove()
