"""What a micro-batch costs: from its tokens to the summed loss, by the kernels of the run."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.data.flattening import flatten
from mltune_cli.training.kernels.cross_entropy import Targets, linear_cross_entropy
from mltune_cli.training.kernels.installing import FlatRows, ModelKernels


def summed_loss(
    model: Any, kernels: ModelKernels, batch: MicroBatch, device: torch.device
) -> torch.Tensor:
    """Return the summed negative log-likelihood, in nats, of a micro-batch's target tokens.

    Args:
        model: the whole network.
        kernels: how it is computed.
        batch: on the CPU.
        device: where the model is.
    """
    precision: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if kernels.autocast:
        precision = torch.autocast(device.type, dtype=torch.bfloat16)
    if kernels.flat is None:
        return _padded_loss(model, kernels, batch.to(device), precision)
    inputs, targets = _flat_inputs(kernels.flat, batch, device)
    if kernels.output is None:
        with precision:
            logits = model(**inputs, use_cache=False).logits
        return _whole_loss(logits[0], targets)
    with precision:
        hidden = kernels.output.decoder(**inputs, use_cache=False).last_hidden_state[0]
    if kernels.autocast:
        hidden = hidden.bfloat16()
    return linear_cross_entropy(hidden, kernels.output.layer.weight, targets, kernels.output.scores)


def _padded_loss(
    model: Any,
    kernels: ModelKernels,
    batch: MicroBatch,
    precision: contextlib.AbstractContextManager[object],
) -> torch.Tensor:
    if kernels.packed:
        # No mask: transformers derives one that separates documents from positions that restart.
        inputs = {"position_ids": batch.position_ids}
    else:
        inputs = {"attention_mask": batch.attention_mask}
    with precision:
        logits = model(input_ids=batch.input_ids, use_cache=False, **inputs).logits
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )


def _flat_inputs(
    rows: FlatRows, batch: MicroBatch, device: torch.device
) -> tuple[dict[str, Any], Targets]:
    flat = flatten(batch, rows.longest, rows.tokens, device)
    if rows.is_compiled:
        # The number of documents is another in every micro-batch.
        torch._dynamo.mark_dynamic(flat.starts, 0)
    # The names are those of transformers' own kernels of this kind.
    return {
        "input_ids": flat.input_ids,
        "position_ids": flat.position_ids,
        "cu_seq_lens_q": flat.starts,
        "cu_seq_lens_k": flat.starts,
        "max_length_q": flat.longest,
        "max_length_k": flat.longest,
    }, flat.targets


def _whole_loss(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    nothing = targets.labels.new_full((1,), IGNORED_LABEL)
    labels = torch.cat([targets.labels, nothing])[targets.places]
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")
