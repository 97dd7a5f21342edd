"""Steps on a GPU: what is compiled, and what waits for the device."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mltune_cli.bundled import TINY_MODEL, bundled_model
from mltune_cli.errors import NoVerdictError
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.compiling import compile_ahead
from mltune_cli.training.data.collating import MicroBatch
from mltune_cli.training.model import TOKENIZER_FILES
from mltune_cli.training.setup import PreparedRun, prepare_run
from mltune_cli.training.step import PendingStep, StepPlan, begin_step

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]
SmokeRecipe = Callable[..., Recipe]
STEPS = 4


def prepared(recipe: Recipe) -> PreparedRun:
    run = prepare_run(recipe)
    if run.recipe.model.compile:
        compile_ahead(run.state, run.recipe)
    return run


def begin(run: PreparedRun, before_each: Callable[[], None] = lambda: None) -> PendingStep:
    def collated(units: list[int]) -> MicroBatch:
        before_each()
        return collator.collate(units)

    collator, step = run.collator(run.train_data), run.state.step + 1
    count = run.recipe.train.micro_batches_per_step
    units = [run.stream.micro_batch(step, index) for index in range(count)]
    targets = run.train_data.unit_target_counts
    plan = StepPlan(count, int(sum(targets[u] for batch in units for u in batch)), 0, 1e-3, 1.0)
    return begin_step(run.state, run.processes, map(collated, units), plan)


@pytest.mark.parametrize("precision", ["dtype", "fp8"])
def test_a_step_waits_once_and_nothing_is_compiled_after_ten(
    smoke_recipe: SmokeRecipe, precision: str
) -> None:
    from torch._dynamo.utils import counters
    from torch.profiler import ProfilerActivity, profile

    run = prepared(
        smoke_recipe(
            model__device="cuda", model__dtype="bfloat16", model__base_precision=precision,
            adapter__dropout=0.0, train__max_steps=40,
        )
    )  # fmt: skip
    assert run.recipe.model.compile is True
    assert run.recipe.model.attention == "varlen"
    for _ in range(10):
        begin(run).result()
    graphs = dict(counters["stats"])
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            # What waits for the device raises here.
            torch.cuda.set_sync_debug_mode("error")
            pending = begin(run)
            torch.cuda.set_sync_debug_mode("default")
            pending.result()
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts.get("cudaEventSynchronize") == STEPS
    assert counts.get("cudaStreamSynchronize", 0) == 0
    assert counts.get("cudaDeviceSynchronize", 0) <= 1  # the profiler's own
    assert not [name for name in counts if "Pageable" in name]
    assert dict(counters["stats"]) == graphs


def test_steps_are_timed_by_the_gpu_itself(smoke_recipe: SmokeRecipe) -> None:
    """The program is ahead by a step: by its clock the last one would take no time at all."""
    run = prepared(smoke_recipe(model__device="cuda", train__max_steps=40))
    for _ in range(10):
        begin(run).result()
    torch.cuda.synchronize()
    start = time.perf_counter()
    pending = [begin(run) for _ in range(8)]
    seconds = [one.result().seconds for one in pending]
    passed = time.perf_counter() - start
    assert 0.8 * passed < sum(seconds) < 1.05 * passed
    assert min(seconds) > 0.3 * max(seconds)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model whose rows are too long for the compiler to hold one in registers."""
    config = LlamaConfig(
        vocab_size=4096, hidden_size=2048, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=16, num_key_value_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    for name in TOKENIZER_FILES:
        if (source := bundled_model(TINY_MODEL) / name).is_file():
            shutil.copyfile(source, tmp_path / name)
    return tmp_path


def test_a_race_in_a_compiled_kernel_is_found_before_the_first_step(
    smoke_recipe: SmokeRecipe, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's own random numbers, read back by other threads than wrote them: torch 2.11."""
    recipe = smoke_recipe(
        model__name_or_path=str(wide), model__device="cuda", model__dtype="bfloat16",
        adapter__dropout=0.1, data__packing=True, data__max_length=512, train__micro_batch_size=32,
    )  # fmt: skip
    prepared(recipe)  # as mltune compiles it
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    run = prepare_run(recipe)
    monkeypatch.setattr("torch._inductor.config.fallback_random", False)
    with pytest.raises(NoVerdictError, match="lora_B"):
        compile_ahead(run.state, run.recipe)


def leave_behind(byte: int) -> None:
    """Fill memory of all sizes and give it back: what is allocated next finds this byte in it."""
    held = [
        torch.full((size,), byte, dtype=torch.uint8, device="cuda")
        for size in (2**30, 2**28, 2**26, 2**24, 2**20, 2**16, 2**12, 512)
        for _ in range(4)
    ]
    torch.cuda.synchronize()
    del held


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_memory_that_nobody_wrote_decides_nothing(
    smoke_recipe: SmokeRecipe, dropout: float
) -> None:
    """0xFF makes NaN of every format; 0x3C makes numbers near 1 or far from 0."""
    witnesses = []
    for byte in (0x00, 0xFF, 0x3C):
        run = prepared(
            smoke_recipe(
                model__device="cuda", model__dtype="bfloat16", adapter__dropout=dropout,
                train__max_steps=40,
            )
        )  # fmt: skip
        leave = partial(leave_behind, byte)
        witnesses.append([begin(run, leave).result().witness for _ in range(4)])
    assert witnesses[1] == witnesses[0]
    assert witnesses[2] == witnesses[0]
