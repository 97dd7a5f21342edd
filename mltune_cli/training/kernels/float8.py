"""Frozen linear layers whose weights are held, and multiplied, in eight bits.

A row of weights shares one scale, and so does a token of activations: a product of rows with rows
leaves both scales outside, where the matrix product multiplies by them. In the backward product the
weights' scales stand in the dimension that is summed over; they are multiplied into the gradient
before that is quantised, so that one copy of the weights serves both directions.

Quantised is in plain torch, outside the operation, for the compiler to join it with what computed
the values. On a CPU the same numbers are multiplied in float32: what a test computes there differs
from a GPU by rounding alone.

Source of the format: P. Micikevicius et al., "FP8 formats for deep learning", 2022.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from mltune_cli.training.kernels.compiler import why_no_gpu_compiler

FORMAT = torch.float8_e4m3fn
# The largest number of the format.
LARGEST = 448.0
# Rows that are smaller throughout, and rows of zeros, are scaled as if this were their largest.
# Gradients of single tokens are as small as 1e-15.
_SMALLEST = 1e-30
# What the tensor cores ask of the dimensions of a matrix of weights.
_MULTIPLE = 16


def quantised_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in eight bits, and what each is to be multiplied by.

    Args:
        values: shape (rows, columns); what is not finite makes its row NaN.

    Returns:
        `FORMAT`, shape (rows, columns); float32, shape (rows, 1).
    """
    wide = values.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST)
    # Clamped: the product may round to a hair above the largest number, which would be NaN.
    scaled = (wide * (LARGEST / largest)).clamp(-LARGEST, LARGEST)
    return scaled.to(FORMAT), largest / LARGEST


def _product(
    rows: torch.Tensor, row_scales: torch.Tensor, columns: torch.Tensor,
    column_scales: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:  # fmt: skip
    """Return rows times columns^T, both in eight bits.

    Args:
        rows: shape (rows, inner), in row-major order.
        row_scales: float32, shape (rows, 1).
        columns: shape (columns, inner), in row-major order.
        column_scales: float32, shape (columns,); None is 1 for each.
        dtype: of the result; bfloat16 on a GPU.
    """
    if rows.device.type != "cuda":
        out = (rows.float() @ columns.float().t()) * row_scales
        return (out if column_scales is None else out * column_scales).to(dtype)
    if column_scales is None:
        column_scales = row_scales.new_ones(columns.shape[0])
    return torch._scaled_mm(
        rows, columns.t(), scale_a=row_scales, scale_b=column_scales[None, :], out_dtype=dtype,
        use_fast_accum=True,
    )  # fmt: skip


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    matrix = weight.view(torch.uint8)  # there are more kernels for plain bytes
    kernel = _transposing_kernel() if weight.device.type == "cuda" else None
    return (matrix.t().contiguous() if kernel is None else kernel(matrix)).view(FORMAT)


@functools.cache
def _transposing_kernel() -> Callable[[torch.Tensor], torch.Tensor] | None:
    if why_no_gpu_compiler():
        return None
    from mltune_cli.training.kernels.transposing import transposed_on_gpu

    return transposed_on_gpu


@torch.library.custom_op("mltune::float8_linear", mutates_args=())
def float8_linear(
    x: torch.Tensor,
    x8: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return x weight^T + bias.

    Args:
        x: shape (tokens, inputs); gets the gradient, and is not read.
        x8: the same, as `quantised_rows` returned it.
        x_scales: likewise.
        weight: frozen, in `FORMAT`, shape (outputs, inputs).
        weight_scales: float32, shape (outputs,).
        bias: frozen, shape (outputs,).

    Returns:
        In the format of `x`, shape (tokens, outputs).
    """
    out = _product(x8, x_scales, weight, weight_scales, x.dtype)
    return out if bias is None else out.add_(bias)


@float8_linear.register_fake
def _shape(x, x8, x_scales, weight, weight_scales, bias):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("mltune::float8_linear_backward", mutates_args=())
def float8_linear_backward(
    grad: torch.Tensor, grad8: torch.Tensor, grad_scales: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of `x`.

    Args:
        grad: of the output; its format is the result's, and its values are not read.
        grad8: the same times the weights' scales, as `quantised_rows` returned it.
        grad_scales: likewise.
        weight: as of `float8_linear`.
    """
    return _product(grad8, grad_scales, _transposed(weight), None, grad.dtype)


@float8_linear_backward.register_fake
def _gradient_shape(grad, grad8, grad_scales, weight):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return grad.new_empty(grad.shape[0], weight.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[3:5])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    weight, weight_scales = ctx.saved_tensors
    grad = grad.contiguous()
    quantised = quantised_rows(grad.float() * weight_scales)
    grad_x = torch.ops.mltune.float8_linear_backward(grad, *quantised, weight)
    return grad_x, None, None, None, None, None


float8_linear.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("mltune::float8_low_rank_linear", mutates_args=())
def float8_low_rank_linear(
    x: torch.Tensor,
    x8: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x weight^T + bias + scaling (x a^T) b^T, and x a^T.

    The first six arguments are those of `float8_linear`, the others those of `low_rank_linear`: the
    adapter computes in the format of `x`.
    """
    inner = x @ a.t()
    out = float8_linear(x, x8, x_scales, weight, weight_scales, bias)
    return out.addmm_(inner, b.t(), alpha=scaling), inner


@float8_low_rank_linear.register_fake
def _shapes(x, x8, x_scales, weight, weight_scales, bias, a, b, scaling):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@torch.library.custom_op("mltune::float8_low_rank_linear_backward", mutates_args=())
def float8_low_rank_linear_backward(
    grad: torch.Tensor,
    grad8: torch.Tensor,
    grad_scales: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `x`, `a` and `b`."""
    grad_inner = (grad @ b).mul_(scaling)
    grad_x = float8_linear_backward(grad, grad8, grad_scales, weight)
    grad_x.addmm_(grad_inner, a)
    return grad_x, grad_inner.t() @ x, (grad.t() @ inner).mul_(scaling)


@float8_low_rank_linear_backward.register_fake
def _gradient_shapes(grad, grad8, grad_scales, x, inner, weight, a, b, scaling):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)


def _keep_both(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, _, _, weight, weight_scales, _, a, b, scaling = inputs
    ctx.save_for_backward(x, output[1], weight, weight_scales, a, b)
    ctx.scaling = scaling
    ctx.mark_non_differentiable(output[1])


def _backward_of_both(
    ctx: Any, grad: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    x, inner, weight, weight_scales, a, b = ctx.saved_tensors
    grad = grad.contiguous()
    quantised = quantised_rows(grad.float() * weight_scales)
    grad_x, grad_a, grad_b = torch.ops.mltune.float8_low_rank_linear_backward(
        grad, *quantised, x, inner, weight, a, b, ctx.scaling
    )
    return grad_x, None, None, None, None, None, grad_a, grad_b, None


float8_low_rank_linear.register_autograd(_backward_of_both, setup_context=_keep_both)


class Float8Linear(torch.nn.Linear):
    """A linear layer whose frozen weight is in eight bits, a scale for each output beside it.

    Attributes:
        weight_scales: float32, shape (outputs,).
        compute_dtype: what the weight was in, and results are in.
    """

    weight_scales: torch.Tensor
    compute_dtype: torch.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x weight^T + bias; x has shape (..., inputs)."""
        flat = x.reshape(-1, x.shape[-1])
        out: torch.Tensor = torch.ops.mltune.float8_linear(
            flat, *quantised_rows(flat.detach()), self.weight, self.weight_scales, self.bias
        )
        return out.view(*x.shape[:-1], -1)


def hold_in_float8(layers: torch.nn.Module, device: torch.device) -> tuple[int, int]:
    """Hold the frozen weights of linear layers in eight bits, and bring them to a device.

    They are brought there one at a time, so that the device never holds more of them than it will.

    Args:
        layers: their parameters and those of the layers in them; an adapter may be on them.
        device: where they will be computed.

    Returns:
        How many layers are held so, and how many frozen ones stay as they are, since tensor cores
        do not know their width.
    """
    held = left = 0
    for layer in layers.modules():
        if type(layer) is not torch.nn.Linear or _is_trained(layer):
            continue
        if any(size % _MULTIPLE for size in layer.weight.shape):
            left += 1
        else:
            weight = layer.weight.detach().to(device)
            quantised, scales = quantised_rows(weight)
            one: Any = layer
            one.__class__ = Float8Linear
            one.compute_dtype = weight.dtype
            one.weight = torch.nn.Parameter(quantised, requires_grad=False)
            one.register_buffer("weight_scales", scales[:, 0].contiguous(), persistent=False)
            held += 1
    return held, left


def _is_trained(layer: torch.nn.Linear) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())
