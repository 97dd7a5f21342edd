"""Linear layers with a low-rank adapter, computed in the base's number format.

peft computes adapters in float32, the format that they are trained in: on a GPU that runs without
tensor cores and took a quarter of a step. Here the trained float32 tensors have copies in the
base's format, made anew after every step; the copies compute and get the gradients, which are
summed in float32 as ever. Base and adapter share one operation, so that the adapter's part is added
by the matrix product itself instead of in passes of its own over the output.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from peft.tuners.lora import Linear as PeftLinear

_ADAPTER = "default"


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
    out = F.linear(x, weight, bias)
    return out.addmm_(inner, b.t(), alpha=scaling), inner


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
    model: torch.nn.Module, trained: Mapping[str, torch.Tensor]
) -> ComputeCopies | None:
    """Let a model's adapters compute in the format of its base.

    Args:
        model: with peft's adapter, where it will be computed.
        trained: its trained parameters, by name.

    Returns:
        The copies that compute; None where an adapter is of a kind that only peft can compute.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, PeftLinear)}
    needed = {
        f"{name}.{part}.{_ADAPTER}.weight" for name in layers for part in ("lora_A", "lora_B")
    }
    if not layers or needed != set(trained) or not all(map(_is_plain, layers.values())):
        return None
    formats: set[torch.dtype] = {
        one.get_base_layer().weight.dtype for one in map(_untyped, layers.values())
    }
    if len(formats) > 1:
        return None
    copies = ComputeCopies(trained, formats.pop())
    for name, layer in layers.items():
        one: Any = layer
        # Not a function for each layer: the compiler would take every layer for another one.
        one.__class__ = _LowRankLinear
        one.compute_a = copies.by_name[f"{name}.lora_A.{_ADAPTER}.weight"]
        one.compute_b = copies.by_name[f"{name}.lora_B.{_ADAPTER}.weight"]
    return copies


class _LowRankLinear(PeftLinear):
    """peft's layer, with its names, files and parameters, computed by the copies."""

    compute_a: torch.Tensor
    compute_b: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return base plus adapter; x has shape (..., inputs)."""
        base: Any = self.base_layer
        dropout = self.lora_dropout[_ADAPTER]
        scaling = self.scaling[_ADAPTER]
        if isinstance(dropout, torch.nn.Dropout) and self.training:
            inner = F.linear(dropout(x), self.compute_a)
            return torch.add(base(x), F.linear(inner, self.compute_b), alpha=scaling)
        flat = x.reshape(-1, x.shape[-1])
        out, _ = torch.ops.mltune.low_rank_linear(
            flat, base.weight, base.bias, self.compute_a, self.compute_b, scaling
        )
        result: torch.Tensor = out.view(*x.shape[:-1], -1)
        return result


def _untyped(layer: object) -> Any:
    return layer


def _is_plain(layer: Any) -> bool:
    """Tell whether peft computes no more than base plus scaled product for a layer."""
    return (
        type(layer.get_base_layer()) is torch.nn.Linear
        and layer.active_adapters == [_ADAPTER]
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and not layer.lora_bias[_ADAPTER]
        and not layer.merged
    )
