"""The names of an optimizer's parameters, and the frozen ones beside them.

An optimizer knows tensors alone. The modules that hold them are found among the living objects of
the process, once for each optimizer.
"""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch

_NO_FORWARD = vars(torch.nn.Module)["forward"]


@dataclass(frozen=True)
class NamedModel:
    """The outermost modules that hold an optimizer's parameters.

    Attributes:
        names: of the optimizer's parameters, by id.
        frozen: the other parameters of the same modules, in order.
        owners: the modules inside that keep something beside parameters, each with its name.
    """

    names: dict[int, str]
    frozen: dict[str, torch.Tensor]
    owners: tuple[tuple[str, "ref[torch.nn.Module]"], ...] = ()

    def buffers(self) -> dict[str, torch.Tensor]:
        """Return what the modules keep beside parameters and save with them, as it is now."""
        found = _Named()
        for prefix, reference in self.owners:
            owner = reference()
            if owner is None:  # not by its truth: modules may have a length, or refuse to tell it
                continue
            for name in _saved_buffers(owner):
                buffer = owner._buffers[name]
                if buffer is not None:
                    found.add(f"{prefix}.{name}" if prefix else name, buffer)
        return dict(sorted(found.tensors.items()))


@dataclass(frozen=True)
class _Named:
    """Tensors of several modules, each once, with a name of its own."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        free, number = name, 1
        while free in self.tensors:
            number += 1
            free = f"{name} ({number})"
        self.tensors[free] = tensor


def find_model(parameters: Iterable[torch.Tensor]) -> NamedModel:
    """Find the modules that parameters belong to."""
    wanted = {id(parameter): place for place, parameter in enumerate(parameters)}
    # `type`, not isinstance: some libraries' lazy objects import things when asked for a class.
    modules = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]
    inner = {id(child) for module in modules for child in module.children()}
    outermost = [
        (module, list(module.named_parameters())) for module in modules if id(module) not in inner
    ]

    def rank(held: tuple[torch.nn.Module, list[tuple[str, torch.nn.Parameter]]]) -> Any:
        module, own = held
        # Modules alike stand in the optimizer's order: the collector's is another in each run.
        places = [wanted[id(p)] for _, p in own if id(p) in wanted]
        # Of two models that share what is trained, the one with no other head is being trained; the
        # other one may be left of an earlier phase, or be gone. What only lists parameters is none.
        is_list = _is_list(type(module))
        others = sum(p.requires_grad for _, p in own) - len(places)
        first = min(places, default=0)
        return -len(places), is_list, others, -len(own), type(module).__name__, first

    names: dict[int, str] = {}
    frozen = _Named()
    owners: list[tuple[str, ref[torch.nn.Module]]] = []
    # Wrappers that keep a model in a list are outermost too; what holds most names everything.
    for module, own in sorted(outermost, key=rank):
        if not any(id(p) in wanted and id(p) not in names for _, p in own):
            continue
        owners += [
            (name, ref(one)) for name, one in module.named_modules() if any(_saved_buffers(one))
        ]
        for name, parameter in own:
            if id(parameter) in wanted:
                names.setdefault(id(parameter), name)
            elif not parameter.requires_grad:
                frozen.add(name, parameter)
    return NamedModel(names, dict(sorted(frozen.tensors.items())), tuple(owners))


def _is_list(kind: type[torch.nn.Module]) -> bool:
    """Tell whether modules of a class compute nothing themselves, as `ParameterList`."""
    # Not by the attribute: that of TorchScript's classes is only for their instances.
    own = next(vars(one)["forward"] for one in kind.__mro__ if "forward" in vars(one))
    return own is _NO_FORWARD


def _saved_buffers(module: torch.nn.Module) -> list[str]:
    """Return the names of a module's buffers that are saved; others are scratch, or computed."""
    # A module of TorchScript has its own kind of mapping, which only its keys go through.
    scratch = getattr(module, "_non_persistent_buffers_set", ())
    return [name for name in module._buffers.keys() if name not in scratch]  # noqa: SIM118
