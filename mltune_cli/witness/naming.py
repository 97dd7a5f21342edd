"""The names of an optimizer's parameters, and the frozen ones beside them.

An optimizer knows tensors alone. The modules that hold them are found among the living objects of
the process, once for each optimizer.
"""

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import ref

import torch


@dataclass(frozen=True)
class NamedModel:
    """The outermost modules that hold an optimizer's parameters.

    Attributes:
        names: of the optimizer's parameters, by id.
        frozen: the other parameters of the same modules, in order.
        modules: those modules.
    """

    names: dict[int, str]
    frozen: dict[str, torch.Tensor]
    modules: tuple["ref[torch.nn.Module]", ...] = ()

    def buffers(self) -> dict[str, torch.Tensor]:
        """Return what the modules keep beside parameters and save with them, as it is now."""
        found: dict[str, torch.Tensor] = {}
        for module in (reference() for reference in self.modules):
            # Not by its truth: modules may have a length, or refuse to tell it.
            for name, buffer in () if module is None else _saved_buffers(module):
                found.setdefault(name, buffer)
        return dict(sorted(found.items()))


def find_model(parameters: Iterable[torch.Tensor]) -> NamedModel:
    """Find the modules that parameters belong to."""
    wanted = {id(parameter) for parameter in parameters}
    # `type`, not isinstance: some libraries' lazy objects import things when asked for a class.
    modules = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]
    inner = {id(child) for module in modules for child in module.children()}
    names: dict[int, str] = {}
    frozen: dict[str, torch.Tensor] = {}
    holders: list[ref[torch.nn.Module]] = []
    outermost = [module for module in modules if id(module) not in inner]
    # Wrappers that keep a model in a list are outermost too; the largest one names everything.
    for module in sorted(outermost, key=_size, reverse=True):
        own = list(module.named_parameters())
        if not any(id(p) in wanted and id(p) not in names for _, p in own):
            continue
        holders.append(ref(module))
        for name, parameter in own:
            if id(parameter) in wanted:
                names.setdefault(id(parameter), name)
            elif not parameter.requires_grad:
                frozen.setdefault(name, parameter)
    return NamedModel(names, dict(sorted(frozen.items())), tuple(holders))


def _saved_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that a module's state has; others are scratch, or computed when needed."""
    for prefix, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            if (
                buffer is not None
                and not buffer.is_meta
                and name not in owner._non_persistent_buffers_set
            ):
                yield f"{prefix}.{name}" if prefix else name, buffer


def _size(module: torch.nn.Module) -> tuple[int, str]:
    return sum(1 for _ in module.parameters()), type(module).__name__
