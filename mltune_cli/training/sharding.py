"""A model whose parameters are divided over the processes (FSDP2), and its tensors made whole.

A frozen base is divided, the adapters are not: each process has them whole, as in an undivided
run, so their gradients are summed along the same tree and the bits are the same. Where the trained
parameters themselves are divided (full fine-tuning), torch sums their gradients in an order that
depends on the number of processes, and the claim is not made.
"""

from collections.abc import Iterable, Mapping

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mltune_cli.training.processes import Processes


def divide_model(
    model: torch.nn.Module, kept_whole: Iterable[torch.nn.Parameter], processes: Processes
) -> None:
    """Divide a model over the processes, layer by layer, so that no device holds it whole.

    Args:
        model: on the CPU.
        kept_whole: parameters that each process has for itself.
        processes: what it is divided over, each of which ends up with its part on its device.
    """
    ignored = set(kept_whole)
    for parameter in ignored:
        parameter.data = parameter.data.to(processes.device)
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the step's token count already: nothing but a sum is wanted.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the blocks that the model's authors say must stay in one piece."""
    names: set[str] = set()
    for module in model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def is_divided(tensor: torch.Tensor) -> bool:
    """Tell whether a process holds only a part of a tensor."""
    return isinstance(tensor, DTensor)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor made whole. All processes must ask, in one order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(
    tensors: Mapping[str, torch.Tensor], *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """Return named tensors, each whole and on the CPU. All processes must ask.

    Args:
        tensors: whole or divided.
        keep: False in a process that only helps the others, and gets nothing.
    """
    made_whole = {}
    for name, tensor in sorted(tensors.items()):
        one = whole(tensor.detach())
        if keep:
            made_whole[name] = one.cpu().contiguous()
    return made_whole


def like(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor, which every process has, divided as `pattern` is, on its device."""
    moved = tensor.to(pattern.device)
    if isinstance(pattern, DTensor) and tensor.dim() > 0:
        return distribute_tensor(moved, pattern.device_mesh, pattern.placements, src_data_rank=None)
    return moved
