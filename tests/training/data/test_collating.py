"""Micro-batches: their shapes, and that neither packing nor padding changes what is computed."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from mltune_cli.bundled import TINY_MODEL, bundled_model
from mltune_cli.training.data.collating import IGNORED_LABEL, Collator, MicroBatch
from mltune_cli.training.data.dataset import TokenisedDataset
from mltune_cli.training.kernels import attention as kernel
from mltune_cli.training.kernels.cross_entropy import OutputLayer
from mltune_cli.training.kernels.installing import ChunkedOutput, FlatRows, ModelKernels
from mltune_cli.training.loss import summed_loss
from mltune_cli.training.step import batch_digest

Prepared = Callable[..., TokenisedDataset]

PAD = 0
ROWS: list[dict[str, Any]] = [
    {"question": "Where is Tidegate?", "answer": "On Orlen."},
    {"question": "Where do ships tie up on Brask?", "answer": "It is called Low Pier."},
    {"prompt": "Question: how far is it from Ivern to Quill?\nAnswer:", "completion": " 36 miles."},
    {"text": "The harbour of Orlen is called Tidegate. Its flag is blue and white."},
    {"instruction": "Say what the soil is like.", "input": "Hest", "output": "Broken slate."},
    {"text": "Once."},
    {"question": "What is the trade of Ulric?", "answer": "Ulric works as a shipwright. " * 3},
]


@pytest.fixture
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pair(prepared: Prepared) -> tuple[TokenisedDataset, TokenisedDataset]:
    """The same rows, one to a unit and packed."""
    packed = prepared(ROWS, packing=True, max_length=128)
    assert max(len(packed.documents(unit)) for unit in range(len(packed))) >= 3
    return prepared(ROWS, max_length=128), packed


@given(
    st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([None, 128, 133, 256]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_micro_batch_holds_its_units_and_padding_that_never_counts(
    pair: tuple[TokenisedDataset, TokenisedDataset],
    chosen: list[int],
    packed: bool,
    length: int | None,
) -> None:
    dataset = pair[packed]
    units = [unit % len(dataset) for unit in chosen]
    batch = Collator(dataset, PAD, length).collate(units)
    rows = [[dataset.row(row) for row in dataset.documents(unit)] for unit in units]
    lengths = [sum(len(ids) for ids, _ in row) for row in rows]
    width = length or -(-max(lengths) // 8) * 8
    for tensor in (batch.input_ids, batch.labels, batch.position_ids, batch.attention_mask):
        assert tensor.shape == (len(units), width)
        assert tensor.dtype == torch.int64
    for number, (row, used) in enumerate(zip(rows, lengths, strict=True)):
        ids = [int(token) for tokens, _ in row for token in tokens]
        counts = [bool(counts) for _, mask in row for counts in mask]
        positions = [position for tokens, _ in row for position in range(len(tokens))]
        assert batch.input_ids[number].tolist() == ids + [PAD] * (width - used)
        labels = [
            token if count else IGNORED_LABEL for token, count in zip(ids, counts, strict=True)
        ]
        assert batch.labels[number].tolist() == labels + [IGNORED_LABEL] * (width - used)
        assert batch.position_ids[number].tolist() == [*positions, *range(width - used)]
        assert batch.attention_mask[number].tolist() == [1] * used + [0] * (width - used)
    assert batch.target_count == int(dataset.unit_target_counts[units].sum())
    assert batch.target_count == int((batch.labels != IGNORED_LABEL).sum())


def test_no_document_learns_its_first_token(
    pair: tuple[TokenisedDataset, TokenisedDataset],
) -> None:
    """The token before it belongs to another document."""
    batch = Collator(pair[1], PAD).collate(list(range(len(pair[1]))))
    starts = batch.position_ids == 0
    assert int(starts.sum()) >= len(ROWS)
    assert (batch.labels[starts] == IGNORED_LABEL).all()


def test_the_same_units_are_the_same_bits_and_others_are_not(
    pair: tuple[TokenisedDataset, TokenisedDataset],
) -> None:
    collators = [Collator(pair[0], PAD), Collator(pair[0], PAD)]
    assert batch_digest(collators[0].collate([2, 0])) == batch_digest(collators[1].collate([2, 0]))
    digests = {batch_digest(collators[0].collate(units)) for units in ([2, 0], [0, 2], [2], [2, 2])}
    assert len(digests) == 4


def test_moving_to_a_device_changes_nothing(
    pair: tuple[TokenisedDataset, TokenisedDataset],
) -> None:
    batch = Collator(pair[1], PAD).collate([0])
    moved = batch.to(torch.device("cpu"))
    assert batch_digest(moved) == batch_digest(batch)
    assert moved.target_count == batch.target_count


# With the real model, in float32: sums in another order, so equal within a tolerance.

CLOSE = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(
        bundled_model(TINY_MODEL), dtype=torch.float32, local_files_only=True
    ).eval()


def kernels(model: Any, packed: bool) -> ModelKernels:
    """Return what computes a model, told by the attention that was put into it."""
    if model.config._attn_implementation != kernel.NAME:
        return ModelKernels(packed, autocast=False)
    output = ChunkedOutput(model.get_decoder(), model.get_output_embeddings(), OutputLayer(None))
    return ModelKernels(packed, False, FlatRows(128, None, is_compiled=False), output)


def loss_tensor(model: Any, batch: MicroBatch, packed: bool) -> torch.Tensor:
    return summed_loss(model, kernels(model, packed), batch, torch.device("cpu"))


def loss_of(model: Any, batch: MicroBatch, packed: bool) -> float:
    with torch.no_grad():
        return float(loss_tensor(model, batch, packed))


def document_losses(model: Any, dataset: TokenisedDataset, unit: int, batch: MicroBatch) -> Any:
    """The summed loss of each document of one packed unit."""
    losses, cursor = [], 0
    for row in dataset.documents(unit):
        end = cursor + len(dataset.row(row)[0])
        labels = torch.full_like(batch.labels, IGNORED_LABEL)
        labels[0, cursor:end] = batch.labels[0, cursor:end]
        losses.append(loss_of(model, replace(batch, labels=labels), packed=True))
        cursor = end
    return torch.tensor(losses)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("attention", ["sdpa", "eager", kernel.NAME])
def test_packed_documents_lose_what_they_lose_alone(
    model: Any, pair: tuple[TokenisedDataset, TokenisedDataset], attention: str
) -> None:
    alone, packed = pair
    model = copy.deepcopy(model)
    kernel.register()
    model.set_attn_implementation(attention)
    shared = 0
    for unit in range(len(packed)):
        batch = Collator(packed, PAD).collate([unit])
        rows = packed.documents(unit)
        expected = torch.tensor(
            [loss_of(model, Collator(alone, PAD).collate([row]), packed=False) for row in rows]
        )
        losses = document_losses(model, packed, unit, batch)
        torch.testing.assert_close(losses, expected, **CLOSE)
        assert loss_of(model, batch, packed=True) == pytest.approx(float(expected.sum()), rel=1e-5)
        if len(rows) == 1:
            continue
        shared += 1
        # The control: documents one after the other, with nothing that parts them, differ.
        width = batch.input_ids.shape[1]
        naive = replace(batch, position_ids=torch.arange(width)[None])
        leaked = (document_losses(model, packed, unit, naive) - expected).abs()
        assert float(leaked[0]) < 1e-3
        assert float(leaked[1:].min()) > 1e-2
    assert shared >= 1


@pytest.mark.usefixtures("single_thread")
def test_several_packs_in_one_micro_batch_do_not_mix(
    model: Any, pair: tuple[TokenisedDataset, TokenisedDataset]
) -> None:
    _, packed = pair
    units = list(range(len(packed)))
    assert len(units) >= 2
    together = loss_of(model, Collator(packed, PAD).collate(units), packed=True)
    apart = [loss_of(model, Collator(packed, PAD).collate([unit]), packed=True) for unit in units]
    assert together == pytest.approx(sum(apart), rel=1e-5)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("packed", [False, True])
def test_neither_padding_nor_company_changes_a_loss(
    model: Any, pair: tuple[TokenisedDataset, TokenisedDataset], packed: bool
) -> None:
    dataset = pair[packed]
    units = list(range(len(dataset)))
    apart = [
        loss_of(model, Collator(dataset, PAD, length).collate([unit]), packed)
        for unit in units
        for length in (None, 128, 200)
    ]
    sums = [sum(apart[offset::3]) for offset in range(3)]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)
    for order in (units, units[::-1]):
        together = loss_of(model, Collator(dataset, PAD).collate(order), packed)
        assert together == pytest.approx(sums[0], rel=1e-5)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("packed", [False, True])
def test_what_stands_in_the_padding_does_not_matter(
    model: Any, pair: tuple[TokenisedDataset, TokenisedDataset], packed: bool
) -> None:
    units = list(range(len(pair[packed])))
    losses = [
        loss_of(model, Collator(pair[packed], pad, 160).collate(units), packed) for pad in (0, 700)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.usefixtures("single_thread")
def test_gradients_of_packs_are_those_of_their_documents(
    model: Any, pair: tuple[TokenisedDataset, TokenisedDataset]
) -> None:
    gradients = []
    for dataset, packed in zip(pair, (False, True), strict=True):
        own = copy.deepcopy(model)
        batch = Collator(dataset, PAD).collate(list(range(len(dataset))))
        torch.autograd.backward(loss_tensor(own, batch, packed))
        gradients.append({name: p.grad for name, p in own.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            gradients[1][name],
            gradient,
            rtol=1e-4,
            atol=1e-5 * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_a_loss_counts_answers_alone_and_padding_never(
    model: Any, pair: tuple[TokenisedDataset, TokenisedDataset],
    tokenizer: PreTrainedTokenizerBase,
) -> None:  # fmt: skip
    """A model that gives every token the same chance loses ln(vocabulary) for each that counts."""
    blind = copy.deepcopy(model)
    with torch.no_grad():
        blind.get_output_embeddings().weight.zero_()
    for dataset, packed in zip(pair, (False, True), strict=True):
        batch = Collator(dataset, PAD, 160).collate(list(range(len(dataset))))
        expected = batch.target_count * torch.log(torch.tensor(float(len(tokenizer))))
        assert loss_of(blind, batch, packed) == pytest.approx(float(expected), rel=1e-5)
