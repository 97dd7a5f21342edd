"""Linear layers with a low-rank adapter, computed in the base's number format.

peft computes adapters in float32, the format that they are trained in: on a GPU that runs without
tensor cores and took a quarter of a step. Here the trained float32 tensors have copies in the
base's format, made anew after every step; the copies compute and get the gradients, which are
summed in float32 as ever. Base and adapter share one operation, so that the adapter's part is added
by the matrix product itself instead of in passes of its own over the output; and layers that read
the same input share it, as one layer whose outputs are theirs, one after another.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from peft.tuners.lora import Linear as PeftLinear

from mltune_cli.training.kernels.float8 import Float8Linear, quantised_rows

_ADAPTER = "default"
# Numbers that the fast kernels for matrix products want a row to be a multiple of.
_ALIGNMENT = 8
# Layers of one parent that are called one after another, on the same input.
_TOGETHER = ("q_proj", "k_proj", "v_proj")


@torch.library.custom_op("mltune::low_rank_linear", mutates_args=())
def low_rank_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x weight^T + bias + scaling (x a^T) b^T, and x a^T.

    Args:
        x: shape (tokens, inputs).
        weight: frozen, shape (outputs, inputs).
        bias: frozen, shape (outputs,).
        a: trained, shape (rank, inputs).
        b: trained, shape (outputs, rank).
        scaling: of the adapter's part.

    Returns:
        Shapes (tokens, outputs) and (tokens, rank).
    """
    inner = x @ a.t()
    if _is_wide(x, weight, a):
        out = torch.cat([x, inner], 1) @ torch.cat([weight, scaling * b], 1).t()
        return out if bias is None else out.add_(bias), inner
    out = F.linear(x, weight, bias)
    return out.addmm_(inner, b.t(), alpha=scaling), inner


def _is_wide(x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor) -> bool:
    """Tell whether to add to the result in a pass of its own takes longer than copying the factors.

    With the copies the adapter's part is but a few more columns of one product. The shapes alone
    decide, so a micro-batch is computed in the same way wherever it is.
    """
    (tokens, inputs), outputs, rank = x.shape, weight.shape[0], a.shape[0]
    aligned = (inputs + rank) % _ALIGNMENT == 0
    return aligned and outputs * tokens > 2 * inputs * (outputs + tokens)


@low_rank_linear.register_fake
def _shapes(x, weight, bias, a, b, scaling):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@torch.library.custom_op("mltune::low_rank_linear_backward", mutates_args=())
def low_rank_linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `x`, `a` and `b`; arguments as of `low_rank_linear`."""
    grad_inner = (grad @ b).mul_(scaling)
    grad_x = grad @ weight
    grad_x.addmm_(grad_inner, a)
    return grad_x, grad_inner.t() @ x, (grad.t() @ inner).mul_(scaling)


@low_rank_linear_backward.register_fake
def _gradient_shapes(grad, x, inner, weight, a, b, scaling):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, weight, _, a, b, scaling = inputs
    ctx.save_for_backward(x, output[1], weight, a, b)
    ctx.scaling = scaling
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, inner, weight, a, b = ctx.saved_tensors
    grads = torch.ops.mltune.low_rank_linear_backward(
        grad.contiguous(), x, inner, weight, a, b, ctx.scaling
    )
    return grads[0], None, None, grads[1], grads[2], None


low_rank_linear.register_autograd(_backward, setup_context=_keep)


class ComputeCopies:
    """Copies of trained float32 tensors in another number format, which compute in their place.

    Args:
        trained: by name.
        dtype: of the copies.
    """

    def __init__(self, trained: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self._trained = list(trained.values())
        self.by_name = {
            name: tensor.detach().to(dtype).clone().requires_grad_()
            for name, tensor in trained.items()
        }

    def renew(self) -> None:
        """Make the copies equal to what is trained; after every change of it."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.by_name.values()), self._trained)


def compute_in_base_format(
    model: torch.nn.Module, trained: Mapping[str, torch.Tensor], *, together: bool = False
) -> ComputeCopies | None:
    """Let a model's adapters compute in the format of its base.

    Args:
        model: with peft's adapter, where it will be computed.
        trained: its trained parameters, by name.
        together: queries, keys and values are computed by one operation, from weights that become
            one tensor.

    Returns:
        The copies that compute; None where an adapter is of a kind that only peft can compute.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, PeftLinear)}
    needed = {
        f"{name}.{part}.{_ADAPTER}.weight" for name in layers for part in ("lora_A", "lora_B")
    }
    if not layers or needed != set(trained) or not all(map(_is_plain, layers.values())):
        return None
    formats = {_format(one.get_base_layer()) for one in map(_untyped, layers.values())}
    if len(formats) > 1:
        return None
    copies = ComputeCopies(trained, formats.pop())
    for name, layer in layers.items():
        one: Any = layer
        # Not a function for each layer: the compiler would take every layer for another one.
        one.__class__ = _LowRankLinear
        one.compute_a = copies.by_name[f"{name}.lora_A.{_ADAPTER}.weight"]
        one.compute_b = copies.by_name[f"{name}.lora_B.{_ADAPTER}.weight"]
    for parent in model.modules() if together else ():
        children = [getattr(parent, name, None) for name in _TOGETHER]
        if all(isinstance(child, _LowRankLinear) for child in children):
            _share_input([_untyped(child) for child in children])
    return copies


class _LowRankLinear(PeftLinear):
    """peft's layer, with its names, files and parameters, computed by the copies."""

    compute_a: torch.Tensor
    compute_b: torch.Tensor
    shared: "_SharedInput | None" = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return base plus adapter; x has shape (..., inputs)."""
        base: Any = self.base_layer
        dropout = self.lora_dropout[_ADAPTER]
        scaling = self.scaling[_ADAPTER]
        if isinstance(dropout, torch.nn.Dropout) and self.training:
            inner = F.linear(dropout(x), self.compute_a)
            return torch.add(base(x), F.linear(inner, self.compute_b), alpha=scaling)
        if self.shared is not None:
            return self.shared.part(self, x)
        scales = base.weight_scales if isinstance(base, Float8Linear) else None
        return _base_plus_adapter(
            x, (base.weight, scales, base.bias), (self.compute_a, self.compute_b, scaling)
        )


def _base_plus_adapter(
    x: torch.Tensor,
    base: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    adapter: tuple[torch.Tensor, torch.Tensor, float],
) -> torch.Tensor:
    """Return what one operation makes of x, shape (..., outputs).

    Args:
        x: shape (..., inputs).
        base: weight, its scales where it is in eight bits, and bias.
        adapter: the last arguments of `low_rank_linear`.
    """
    weight, scales, bias = base
    flat = x.reshape(-1, x.shape[-1])
    if scales is None:
        out, _ = torch.ops.mltune.low_rank_linear(flat, weight, bias, *adapter)
    else:
        out, _ = torch.ops.mltune.float8_low_rank_linear(
            flat, *quantised_rows(flat.detach()), weight, scales, bias, *adapter
        )
    result: torch.Tensor = out.view(*x.shape[:-1], -1)
    return result


class _SharedInput:
    """Layers that are called one after another with the same input, computed as one.

    The first call computes for all of them; the others take their part. Whoever comes with another
    input, or in another order, is computed alone.

    Args:
        layers: in the order of their calls.
        base: their weights one below the other, and scales and biases likewise.
    """

    def __init__(
        self,
        layers: list["_LowRankLinear"],
        base: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    ) -> None:
        self._layers = layers
        self._base = base
        self._widths = [_untyped(layer).base_layer.weight.shape[0] for layer in layers]
        self._input: torch.Tensor | None = None
        self._waiting: list[torch.Tensor] = []

    def part(self, layer: "_LowRankLinear", x: torch.Tensor) -> torch.Tensor:
        """Return a layer's output; `x` has shape (..., inputs)."""
        place = len(self._layers) - len(self._waiting)
        if self._waiting and x is self._input and layer is self._layers[place]:
            mine, *self._waiting = self._waiting
        elif layer is self._layers[0]:
            mine, *self._waiting = self._all(x)
            self._input = x
        else:
            mine = self._all(x)[self._layers.index(layer)]
        if not self._waiting:
            self._input = None
        return mine

    def _all(self, x: torch.Tensor) -> list[torch.Tensor]:
        a = torch.cat([layer.compute_a for layer in self._layers])
        block_diagonal: Any = torch.block_diag
        b = block_diagonal(*(layer.compute_b for layer in self._layers))
        scaling = self._layers[0].scaling[_ADAPTER]
        out = _base_plus_adapter(x, self._base, (a, b, scaling))
        return list(torch.split(out, self._widths, dim=-1))


def _share_input(layers: list[Any]) -> None:
    """Let layers be computed together, where that computes the same."""
    bases = [layer.base_layer for layer in layers]
    has_bias = bases[0].bias is not None
    kinds = {
        (type(b), b.weight.dtype, b.in_features, b.bias is not None, layer.scaling[_ADAPTER])
        for b, layer in zip(bases, layers, strict=True)
    }
    if len(kinds) > 1:
        return
    weight = torch.cat([base.weight.detach() for base in bases])
    scales = bias = None
    if isinstance(bases[0], Float8Linear):
        scales = torch.cat([base.weight_scales for base in bases])
    if has_bias:
        bias = torch.cat([base.bias.detach() for base in bases])
    first = 0
    for base in bases:
        # The same numbers in the same places of the model; no second copy of them.
        base.weight.data = weight[first : first + base.out_features]
        first += base.out_features
    shared = _SharedInput(layers, (weight, scales, bias))
    for layer in layers:
        layer.shared = shared


def _untyped(layer: object) -> Any:
    return layer


def _format(base: Any) -> torch.dtype:
    """Return the format that a linear layer's results are in."""
    dtype: torch.dtype = base.weight.dtype
    return base.compute_dtype if isinstance(base, Float8Linear) else dtype


def _is_plain(layer: Any) -> bool:
    """Tell whether peft computes no more than base plus scaled product for a layer."""
    return (
        type(layer.get_base_layer()) in (torch.nn.Linear, Float8Linear)
        and layer.active_adapters == [_ADAPTER]
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and not layer.lora_bias[_ADAPTER]
        and not layer.merged
    )
