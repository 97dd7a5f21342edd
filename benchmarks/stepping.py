"""mltune's own training path in this process: steps taken as `mltune train` takes them.

What `mltune_cli.training.loop` does around a step besides (logs, checkpoints, evaluations) is left
out. The process has to be started with the environment of `Case.environment`.
"""

import contextlib
import gc
import itertools
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from unittest.mock import patch

import torch
from cases import recipe_of
from device import Turn, forget_peak, peak_bytes, wait_for_device

from mltune_cli.training import shared_witness
from mltune_cli.training import step as step_module
from mltune_cli.training.compiling import compile_ahead
from mltune_cli.training.data.loading import micro_batches
from mltune_cli.training.determinism import settle
from mltune_cli.training.optimization import learning_rate_at
from mltune_cli.training.setup import prepare_run
from mltune_cli.training.step import PendingStep, StepPlan, StepResult, begin_step
from mltune_cli.witness.digest import PendingDigest


class Stepper:
    """A prepared run, and its steps.

    Args:
        pairs: the recipe, as `--set` pairs; `train.max_steps` must cover all steps to come.
    """

    def __init__(self, pairs: Mapping[str, str]) -> None:
        recipe = recipe_of(pairs)
        settle(recipe.reproducibility.threads)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        gc.freeze()  # as the worker does
        self.run = prepare_run(recipe)
        if self.run.recipe.model.compile:
            compile_ahead(self.run.state, self.run.recipe)
        train = self.run.recipe.train
        self._count = train.micro_batches_per_step
        turns = self.run.processes.turns(self._count, in_step=self.run.state.in_step)
        self._own = len(turns)
        self._batches = micro_batches(
            self.run.stream,
            self.run.collator(self.run.train_data),
            range(1, (train.max_steps or 0) + 1),
            [turn.index for turn in turns],
            self.run.recipe.data.loader_workers,
        )
        self._unread: deque[PendingStep] = deque()
        # Of all steps that were read so far, in nats.
        self.losses: list[float] = []

    def take(self, steps: int) -> Turn:
        """Take steps: on a GPU each is read while the next one is computed, as the loop does."""
        left = 1 if self.run.processes.device.type == "cuda" else 0
        wait_for_device()
        forget_peak()
        tokens = 0
        start = time.perf_counter()
        for _ in range(steps):
            self._unread.append(self._begin())
            tokens += self._read(left)
        tokens += self._read(0)
        wait_for_device()
        return Turn(steps, time.perf_counter() - start, tokens, peak_bytes())

    def _read(self, left: int) -> int:
        """Wait for steps until so many are unread; return the tokens of those that were read."""
        tokens = 0
        while len(self._unread) > left:
            result: StepResult = self._unread.popleft().result()
            tokens += result.input_tokens
            self.losses.append(result.loss)
        return tokens

    def _begin(self) -> PendingStep:
        run, train = self.run, self.run.recipe.train
        step = run.state.step + 1
        targets = run.train_data.unit_target_counts
        plan = StepPlan(
            micro_batches=self._count,
            target_tokens=sum(
                int(targets[run.stream.micro_batch(step, index)].sum())
                for index in range(self._count)
            ),
            seed=run.recipe.reproducibility.seed,
            learning_rate=learning_rate_at(step, train.max_steps or 0, train),
            max_grad_norm=train.max_grad_norm,
        )
        return begin_step(
            run.state, run.processes, itertools.islice(self._batches, self._own), plan
        )


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Allow what torch allows by default, where `settle` had forbidden it.

    The cuBLAS workspace stays as it is: it is read once, when the process starts to use cuBLAS.
    """
    import torch._inductor.config as compiler

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    was_compiler_deterministic = compiler.deterministic
    torch.use_deterministic_algorithms(mode=False)
    cudnn.deterministic, cudnn.allow_tf32 = False, True
    matmul.allow_bf16_reduced_precision_reduction = True
    compiler.deterministic = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=True)
        cudnn.deterministic, cudnn.allow_tf32 = True, False
        matmul.allow_bf16_reduced_precision_reduction = False
        compiler.deterministic = was_compiler_deterministic


@contextlib.contextmanager
def without_witness() -> Iterator[None]:
    """Take no digest of anything: every one is a constant."""

    def constant(
        tensors: Mapping[str, torch.Tensor], compute_on: torch.device | None = None
    ) -> PendingDigest:
        del compute_on
        device = next(iter(tensors.values())).device
        return PendingDigest("", (torch.zeros((), dtype=torch.int64, device=device),))

    # A name that is gone is an error here, so the figure cannot silently become another one.
    with (
        patch.object(shared_witness, "pending_digest", constant),
        patch.object(step_module, "batch_digest", lambda batch: "0" * 16),  # noqa: ARG005
        patch.object(step_module, "random_state_bytes", lambda device: b""),  # noqa: ARG005
        patch.object(step_module, "hyperparameters", lambda optimizer: ""),  # noqa: ARG005
    ):
        yield
