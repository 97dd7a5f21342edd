"""Who called an operation: the module, the autograd node, the line of code."""

import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class CallSite:
    """Where a call comes from.

    Attributes:
        phase: forward, backward, optimizer or elsewhere.
        module: path of the module, from the outermost one's class.
        node: the autograd node, in backward.
        frame: innermost line of the user's own code.
        library_frame: innermost line outside torch, where it is another one.
    """

    phase: str
    module: str | None = None
    node: str | None = None
    frame: str | None = None
    library_frame: str | None = None


class CallSites:
    """Keeps the stack of modules, and what the forward pass knows about autograd nodes."""

    def __init__(self) -> None:
        self._modules: list[torch.nn.Module] = []
        self._names: Any = WeakIdKeyDictionary()
        # Number of the autograd node to the call that made it.
        self._of_nodes: dict[int, CallSite] = {}
        self._undo: list[Callable[[], None]] = []
        self._in_optimizer = False

    def install(self) -> None:
        """Begin to follow modules."""
        self._undo = [
            register_module_forward_pre_hook(self._enter).remove,
            register_module_forward_hook(self._leave, always_call=True).remove,
        ]

    def remove(self) -> None:
        """Stop following them."""
        for undo in self._undo:
            undo()
        self._undo = []

    def here(self) -> CallSite:
        """Return where the call that is being dispatched comes from."""
        node: Any = torch._C._current_autograd_node()
        frame, library_frame = _frames()
        if node is not None:
            made = self._of_nodes.get(node._sequence_nr(), CallSite("backward"))
            # Threads of the autograd engine have no Python stack of their own.
            return CallSite(
                "backward", made.module, _node_name(node), made.frame or frame,
                made.library_frame or library_frame,
            )  # fmt: skip
        phase = "forward" if self._modules else "elsewhere"
        if self._in_optimizer:
            phase = "optimizer"
        module = self._name(self._modules[-1]) if self._modules else None
        site = CallSite(phase, module, None, frame, library_frame)
        # Autograd numbers its nodes before it dispatches the operation of each.
        self._of_nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, site)
        return site

    def note_optimizer(self, *, begins: bool) -> None:
        """Take note that an optimizer's step begins, or has ended."""
        self._in_optimizer = begins

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:  # noqa: ARG002 - given
        if not self._modules or module not in self._names:
            outermost = self._modules[0] if self._modules else module
            for name, inner in outermost.named_modules():
                path = type(outermost).__name__ + (f".{name}" if name else "")
                self._names.setdefault(inner, path)
        self._modules.append(module)

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        # What an exception left on top goes as well.
        while self._modules and self._modules.pop() is not module:
            pass

    def _name(self, module: torch.nn.Module) -> str:
        name: str = self._names.get(module, type(module).__name__)
        return name


def _node_name(node: Any) -> str:
    name: str = node.name()
    return name.rpartition("::")[2]


def _frames() -> tuple[str | None, str | None]:
    """Return the innermost line of the user's code, and the innermost outside torch."""
    library = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        kind = _kind(frame.f_code.co_filename)
        if kind == "user":
            here = _spelled(frame)
            return here, library if library != here else None
        if kind == "library" and library is None:
            library = _spelled(frame)
        frame = frame.f_back
    return None, library


def _spelled(frame: FrameType) -> str:
    return f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"


@cache
def _shown(path: str) -> str:
    """Return a path as the user would write it: from the working directory, where it is below."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path


@cache
def _kind(path: str) -> str:
    """Tell whose code a file is: torch's and ours and Python's own, a library's, or the user's."""
    whole = Path(path).resolve()
    hidden = (Path(torch.__file__).resolve().parent, Path(__file__).resolve().parents[1])
    if path.startswith("<") or any(folder in whole.parents for folder in hidden):
        return "torch"
    if {"site-packages", "dist-packages"} & set(whole.parts):
        return "library"
    return "torch" if Path(sysconfig.get_path("stdlib")).resolve() in whole.parents else "user"
