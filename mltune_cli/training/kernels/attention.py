"""Attention over documents that stand one after another in one row, without a mask.

A mask over the whole row would cost memory and time in its square, and keeps the fast kernels away.
`varlen_attn` is told where documents begin instead, and its backward pass heeds torch's switch for
deterministic algorithms: measured, it costs nothing.
"""

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch.nn.attention import varlen
from transformers import AttentionInterface

NAME = "mltune_varlen"
# Of the flash kernels, for all lengths and number formats that a recipe can ask for.
_MOST_HEAD_DIM = 256
_HEAD_DIM_MULTIPLE = 8
_PARAMETERS = inspect.signature(varlen.varlen_attn).parameters


def register() -> None:
    """Make the attention known to transformers, which then builds no mask at all."""
    AttentionInterface.register(NAME, packed_attention)


def why_unfit(config: Any, dtype: torch.dtype, device: torch.device) -> str | None:
    """Say why a model's attention cannot be computed so; None where it can.

    Args:
        config: of the decoder.
        dtype: that it computes in.
        device: where.
    """
    if getattr(config, "attention_dropout", 0.0):
        return "it drops attention weights at random"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps attention scores"
    if device.type == "cpu":
        return None
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the kernel does not compute in {str(dtype).removeprefix('torch.')}"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim > _MOST_HEAD_DIM or head_dim % _HEAD_DIM_MULTIPLE:
        return f"the kernel takes no heads of {head_dim} numbers"
    return None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - transformers gives it; always None here
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within each document; of transformers' attention interface.

    Args:
        module: unused, as all that is not named here.
        query: shape (1, heads, tokens, head_dim).
        key: shape (1, key-value heads, tokens, head_dim).
        value: as `key`.
        attention_mask: None.
        cu_seq_lens_q: int32, shape (documents + 1,): where documents begin, and the end.
        max_length_q: tokens that a document has at most.
        scaling: of the scores; None for 1 / sqrt(head_dim).
        sliding_window: how many tokens, itself included, a token sees; None for all.

    Returns:
        Shape (1, tokens, heads, head_dim), and no weights.
    """
    del module
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    window = -1 if sliding_window is None else sliding_window - 1
    compute = _on_cpu if query.device.type == "cpu" else _on_gpu
    # Under autocast, queries and keys come out of the rotation in float32.
    q, k = q.to(v.dtype), k.to(v.dtype)
    return compute(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)[None], None


def _on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int,
) -> torch.Tensor:
    call: Callable[..., Any] = partial(varlen.varlen_attn, scale=scaling, window_size=(window, 0))
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in _PARAMETERS:
            call = partial(call, enable_gqa=True)
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    result: torch.Tensor = call(query, key, value, starts, starts, longest, longest)
    return result


def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,  # noqa: ARG001 - as on a GPU
    scaling: float | None,
    window: int,
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    result: torch.Tensor = torch.ops.mltune.attention_by_documents(
        query, key, value, starts, scale, window
    )
    return result


@torch.library.custom_op("mltune::attention_by_documents", mutates_args=())
def attention_by_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Compute one document after the other: the same result, and what tests compare with.

    Args:
        query: shape (tokens, heads, head_dim).
        key: shape (tokens, key-value heads, head_dim).
        value: as `key`.
        starts: int32, shape (documents + 1,).
        scale: of the scores.
        window: how many tokens before itself a token sees; -1 for all.
    """
    results = [
        _document(query[place], key[place], value[place], scale, window)
        for place in _places(starts)
    ]
    return torch.cat(results)


@attention_by_documents.register_fake
def _shape(query, key, value, starts, scale, window):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@torch.library.custom_op("mltune::attention_by_documents_backward", mutates_args=())
def attention_by_documents_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key and value; arguments as of `attention_by_documents`."""
    grads = [
        _document_gradients(grad[place], query[place], key[place], value[place], scale, window)
        for place in _places(starts)
    ]
    q, k, v = (torch.cat(parts) for parts in zip(*grads, strict=True))
    return q, k, v


@attention_by_documents_backward.register_fake
def _gradient_shapes(grad, query, key, value, starts, scale, window):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])
    ctx.scale, ctx.window = inputs[4:]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    backward = torch.ops.mltune.attention_by_documents_backward
    return (*backward(grad, *ctx.saved_tensors, ctx.scale, ctx.window), None, None, None)


attention_by_documents.register_autograd(_backward, setup_context=_keep)


def _places(starts: torch.Tensor) -> list[slice]:
    return [slice(first, end) for first, end in itertools.pairwise(starts.tolist())]


def _mask(count: int, window: int) -> torch.Tensor:
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    return seen if window < 0 else seen.triu(-window)


def _document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Return one document's attention, shape (tokens, heads, head_dim)."""
    count = query.shape[0]
    mask = _mask(count, window) if 0 <= window < count else None
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    result = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    return result[0].transpose(0, 1)


def _document_gradients(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return one document's gradients, in float32 until the end.

    With P = softmax(S), S = scale Q K^T and O = P V: dV = P^T dO, dP = dO V^T,
    dS = P (dP - rowsum(dP P)), dQ = scale dS K, dK = scale dS^T Q.
    """
    heads, shared = query.shape[1], key.shape[1]
    q, do = (t.float().transpose(0, 1) for t in (query, grad))
    k, v = (t.float().transpose(0, 1).repeat_interleave(heads // shared, 0) for t in (key, value))
    hidden = ~_mask(query.shape[0], window)
    p = (scale * (q @ k.mT)).masked_fill(hidden, float("-inf")).softmax(-1)
    dp = do @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))
    dq, dk, dv = scale * (ds @ k), scale * (ds.mT @ q), p.mT @ do
    dk, dv = (t.view(shared, heads // shared, *t.shape[1:]).sum(1) for t in (dk, dv))
    q_out, k_out, v_out = (t.transpose(0, 1).to(query.dtype) for t in (dq, dk, dv))
    return q_out, k_out, v_out
