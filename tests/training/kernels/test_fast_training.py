"""Training with the fast kernels, as far as a CPU computes them, against the plain ones."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from mltune_cli.errors import NoVerdictError, RecipeValueError
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.checkpoint import put_back, snapshot
from mltune_cli.training.compiling import compile_ahead
from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.evaluation import evaluate
from mltune_cli.training.kernels import attention, installing
from mltune_cli.training.kernels.choice import FAMILIES
from mltune_cli.training.kernels.cross_entropy import OutputLayer
from mltune_cli.training.kernels.installing import ChunkedOutput, FlatRows, ModelKernels
from mltune_cli.training.loss import summed_loss
from mltune_cli.training.setup import PreparedRun, prepare_run
from mltune_cli.training.step import PendingStep, StepPlan, StepResult, begin_step

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SmokeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
PROJECT = Path(__file__).parents[3]
FAST = {
    "model__attention": "varlen", "train__loss_kernel": "chunked",
    "adapter__compute_dtype": "model", "adapter__dropout": 0.0,
}  # fmt: skip
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def begin(run: PreparedRun, learning_rate: float = 1e-3) -> PendingStep:
    collator, step = run.collator(run.train_data), run.state.step + 1
    count = run.recipe.train.micro_batches_per_step
    units = [run.stream.micro_batch(step, index) for index in range(count)]
    targets = run.train_data.unit_target_counts
    plan = StepPlan(
        count, int(sum(targets[u] for batch in units for u in batch)), 0, learning_rate, 1.0
    )
    return begin_step(run.state, run.processes, map(collator.collate, units), plan)


def steps(run: PreparedRun, count: int) -> list[StepResult]:
    return [begin(run).result() for _ in range(count)]


def two_packs() -> MicroBatch:
    """Two rows of documents of several lengths, one of them longer than any window below."""
    torch.manual_seed(3)
    lengths = [[5, 11], [9, 2, 3]]
    width = 18
    ids = torch.randint(1, 64, (2, width))
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, documents in enumerate(lengths):
        tokens = sum(documents)
        mask[row, :tokens] = 1
        positions[row] = torch.cat([torch.arange(n) for n in (*documents, width - tokens)])
    labels = torch.where((mask == 1) & (positions > 0), ids, IGNORED_LABEL)
    return MicroBatch(ids, labels, positions, mask, int((labels >= 0).sum()))


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_loses_and_learns_the_same(kind: str) -> None:
    """Loss and gradients of packed documents, with sliding windows where the family has them."""
    values: dict[str, Any] = {"attn_logit_softcapping": None} if kind == "gemma2" else {}
    if kind in ("mistral", "gemma2", "gemma3_text"):
        values["sliding_window"] = 4
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[kind](**(SMALL | values)), attn_implementation="eager"
    )
    batch = two_packs()
    results = []
    for fast in (False, True):
        kernels = ModelKernels(packed=True, autocast=False)
        if fast:
            attention.register()
            model.set_attn_implementation(attention.NAME)
            softcap = getattr(model.config, "final_logit_softcapping", None)
            assert (softcap is not None) == (kind == "gemma2")
            output = ChunkedOutput(
                model.get_decoder(), model.get_output_embeddings(), OutputLayer(softcap)
            )
            kernels = ModelKernels(True, False, FlatRows(11, None, is_compiled=False), output)
        loss = summed_loss(model, kernels, batch, CPU)
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()))
        results.append((loss, dict(zip(named, gradients, strict=True))))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    for name, gradient in results[0][1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            results[1][1][name],
            gradient,
            rtol=1e-3,
            atol=1e-4 * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize(
    ("values", "tolerance"),
    [
        ({}, 1e-4),
        pytest.param({"data__packing": True}, 1e-4, marks=pytest.mark.long),
        ({"model__dtype": "bfloat16"}, 2e-2),
        pytest.param({"adapter__method": "rslora"}, 1e-4, marks=pytest.mark.long),
        pytest.param({"train__activation_checkpointing": True}, 1e-4, marks=pytest.mark.long),
    ],
)
def test_fifty_steps_lose_what_they_lose_without(
    smoke_recipe: SmokeRecipe, values: dict[str, Any], tolerance: float
) -> None:
    """The same rows in the same order; float32 differs in sums' order, bfloat16 in rounding."""
    plain = prepare_run(smoke_recipe(adapter__dropout=0.0, **values))
    fast = prepare_run(smoke_recipe(**(FAST | values)))
    assert fast.state.kernels.copies is not None
    assert fast.state.kernels.output is not None
    assert plain.state.kernels == ModelKernels(bool(values.get("data__packing")), autocast=False)
    for ours, theirs in zip(steps(fast, 50), steps(plain, 50), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
        assert ours.target_tokens == theirs.target_tokens
        assert ours.input_tokens == theirs.input_tokens
        assert ours.witness.digests["batch"] == theirs.witness.digests["batch"]


@pytest.mark.parametrize("precision", ["dtype", "fp8"])
def test_two_trainings_are_equal_bit_for_bit(run_training: Any, precision: str) -> None:
    values = FAST | {
        "adapter__dropout": 0.1, "model__dtype": "bfloat16", "data__packing": True,
        "model__base_precision": precision,
    }  # fmt: skip
    runs = [run_training(name, **values) for name in ("a", "b")]
    for name in ("witness.jsonl", "training_log.jsonl", "adapter/adapter_model.safetensors"):
        first, second = ((run.folder / name).read_bytes() for run in runs)
        assert first == second


@pytest.mark.parametrize("fast", [False, True])
def test_a_base_in_eight_bits_learns_what_the_base_learns(
    smoke_recipe: SmokeRecipe, *, fast: bool
) -> None:
    """The same rows in the same order; a product in eight bits is off by some percent."""
    values = FAST if fast else {"adapter__dropout": 0.0}
    eight = prepare_run(smoke_recipe(**values, model__base_precision="fp8"))
    plain = prepare_run(smoke_recipe(**values))
    assert eight.initial.digests["model"] != plain.initial.digests["model"]
    assert eight.initial.digests["parameters"] == plain.initial.digests["parameters"]
    losses = [(o.loss, p.loss) for o, p in zip(steps(eight, 50), steps(plain, 50), strict=True)]
    assert all(ours != theirs for ours, theirs in losses)
    assert max(abs(ours - theirs) / theirs for ours, theirs in losses) < 0.03, losses
    assert sum(ours for ours, _ in losses[-10:]) < sum(theirs for _, theirs in losses[:10])


def model_folder(folder: Path, kind: str, **values: Any) -> str:
    """Write a model with random weights, for the bundled model's tokenizer."""
    shutil.copytree(PROJECT / "mltune_cli" / "tiny_model", folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = CONFIG_MAPPING[kind](**(SMALL | {"vocab_size": vocabulary} | values))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_base_of_which_nothing_fits_eight_bits_is_refused(
    smoke_recipe: SmokeRecipe, tmp_path: Path
) -> None:
    values = {"model__base_precision": "fp8", "adapter__dropout": 0.0}
    name = model_folder(tmp_path / "model", "gpt2", n_embd=32, n_head=4, n_layer=2)
    recipe = smoke_recipe(**values, model__name_or_path=name)
    with pytest.raises(RecipeValueError, match=r"base_precision: fp8 holds none of this gpt2"):
        prepare_run(recipe)


def test_layers_that_do_not_fit_eight_bits_are_told_of(
    smoke_recipe: SmokeRecipe, tmp_path: Path
) -> None:
    values = {"model__base_precision": "fp8", "adapter__dropout": 0.0}
    name = model_folder(tmp_path / "model", "llama", intermediate_size=40)
    run = prepare_run(smoke_recipe(**values, model__name_or_path=name))
    assert "9 of 21 linear layers stay in float32 instead of fp8" in run.notices[-1]


@pytest.mark.parametrize("precision", ["dtype", "fp8"])
def test_what_is_put_back_computes_as_it_did(smoke_recipe: SmokeRecipe, precision: str) -> None:
    """The copies that compute are no part of a checkpoint: they are made anew from it."""
    recipe = smoke_recipe(
        **FAST, model__dtype="bfloat16", train__max_steps=4, model__base_precision=precision
    )
    run, other = prepare_run(recipe), prepare_run(recipe)
    steps(run, 2)
    taken = snapshot(run.state)
    # A snapshot on a CPU is what it was taken of, until it is written.
    tensors = [(name, tensor.clone()) for name, tensor in taken.tensors.items()]
    put_back(other.state, taken.step, taken.last_loss, tensors)
    expected = [result.witness for result in steps(run, 2)]
    assert [result.witness for result in steps(other, 2)] == expected


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_is_compiled_anew_over_lengths(
    smoke_recipe: SmokeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every micro-batch has other lengths and another number of documents."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(installing, "BACKEND", "aot_eager")
    for packing in (True, False):
        torch._dynamo.reset()  # type: ignore[no-untyped-call]
        counters.clear()
        fast = prepare_run(
            smoke_recipe(
                **FAST, model__compile=True, data__packing=packing, evaluate__every_steps=1
            )
        )
        plain = prepare_run(smoke_recipe(**FAST, data__packing=packing))
        compile_ahead(fast.state, fast.recipe)
        compiled = dict(counters["stats"])
        assert compiled["unique_graphs"] > 0
        for _ in range(10):
            ours, theirs = begin(fast).result(), begin(plain).result()
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        held_out = [
            evaluate(run.state, run.processes, data, run.collator(data), 2).loss
            for run in (fast, plain)
            if (data := run.validation_data) is not None
        ]
        assert held_out[0] == pytest.approx(held_out[1], rel=1e-4)
        # Nothing was left to the rows that came first.
        assert dict(counters["stats"]) == compiled
        assert not counters["graph_break"]
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("longest", [2, 3, 5])
def test_the_shortest_rows_are_compiled_as_well(
    smoke_recipe: SmokeRecipe, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    monkeypatch.setattr(installing, "BACKEND", "aot_eager")
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    values = {"data__packing": True, "data__loss_on": "all", "data__max_length": longest}
    run = prepare_run(smoke_recipe(**FAST, **values, model__compile=True))
    compile_ahead(run.state, run.recipe)
    assert begin(run).result().loss > 0
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


def test_compiled_layers_that_come_to_other_bits_each_time_are_refused(
    smoke_recipe: SmokeRecipe,
) -> None:
    run = prepare_run(smoke_recipe(**FAST))
    compile_ahead(run.state, run.recipe)
    last = [m for name, m in run.state.model.named_modules() if name.endswith("down_proj")][-1]
    calls = itertools.count()
    last.register_forward_hook(lambda _module, _inputs, output: output + 1e-3 * next(calls))
    with pytest.raises(
        NoVerdictError, match=r"the loss and \d+ more .* set model.compile to false"
    ):
        compile_ahead(run.state, run.recipe)


@pytest.mark.parametrize("late", [1, 2])
def test_steps_that_were_begun_after_one_that_is_not_finite_change_nothing(
    smoke_recipe: SmokeRecipe, late: int
) -> None:
    run = prepare_run(smoke_recipe(**FAST))
    begin(run).result()
    frozen = next(p for p in run.state.model.parameters() if not p.requires_grad)
    before = {name: p.detach().clone() for name, p in run.state.parameters.items()}
    healthy = frozen.data.clone()
    frozen.data.fill_(float("inf"))
    bad = begin(run)
    frozen.data.copy_(healthy)
    for _ in range(late):
        begin(run)
    with pytest.raises(NoVerdictError, match=r"step 2: the (loss|gradient norm) is (nan|inf)"):
        bad.result()
    assert run.state.step == 1
    assert all(torch.equal(before[name], p) for name, p in run.state.parameters.items())


def test_an_adapter_that_peft_alone_computes_is_refused_in_another_format(
    smoke_recipe: SmokeRecipe,
) -> None:
    with pytest.raises(RecipeValueError, match=r"adapter\.compute_dtype.*peft alone"):
        prepare_run(smoke_recipe(**FAST, adapter__method="dora"))
