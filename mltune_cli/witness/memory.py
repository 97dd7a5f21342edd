"""Which operation wrote a piece of memory last, and what of it nothing has written yet."""

from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef

# Stands for the operations before the trace, of which digests say that their results were equal.
BEFORE = -1
# Above this a partial write counts as a whole one: the map would be as large as the memory.
_LARGEST_MAP = 1 << 28
# Above this what reserved memory held is not kept, and a write from outside torch is not noticed.
_LARGEST_COPY = 1 << 26
_LARGEST_COPIES = 1 << 30


@dataclass
class _Piece:
    """One storage.

    Attributes:
        number: in the order in which they were seen.
        alive: keeps the storage's address from being given to another one.
        made_by: place of the operation that wrote it last.
        is_scratch: an operation's own notes, of which only parts mean anything.
        is_raw: allocated, and not written whole.
        written: one flag for each byte of raw memory that is written in part.
        reserved: the bytes of raw memory as they were when it was reserved.
    """

    number: int
    alive: StorageWeakRef
    made_by: int | None = None
    is_scratch: bool = False
    is_raw: bool = False
    written: torch.Tensor | None = None
    reserved: torch.Tensor | None = None

    def is_filled(self) -> None:
        """Note that there is nothing left that was only reserved."""
        self.is_raw, self.written, self.reserved = False, None, None


@dataclass
class Memory:
    """The storages that operations were seen to write."""

    _pieces: dict[int, _Piece] = field(default_factory=dict)
    _copied_bytes: int = 0

    def is_there(self, tensor: torch.Tensor) -> None:
        """Note memory whose contents are known from before the first operation."""
        piece = self._piece(tensor)
        if piece is not None:
            piece.made_by, piece.is_scratch = BEFORE, False

    def allocated(self, tensor: torch.Tensor, record: int) -> None:
        """Note memory that an operation has only reserved."""
        piece = self._piece(tensor)
        if piece is not None:
            piece.made_by, piece.is_scratch = record, False
            piece.is_raw, piece.written = _byte_count(tensor) > 0, None
            piece.reserved = self._copy_of_bytes(tensor)

    def wrote(self, tensor: torch.Tensor, record: int) -> None:
        """Note that an operation has written a tensor, which may be a part of its storage."""
        piece = self._piece(tensor)
        if piece is None:
            return
        piece.made_by, piece.is_scratch = record, False
        if not piece.is_raw:
            return
        total = _byte_count(tensor)
        is_whole = tensor.numel() * tensor.element_size() >= total and tensor.is_contiguous()
        if is_whole or total > _LARGEST_MAP:
            piece.is_filled()
            return
        if piece.written is None:
            piece.written = torch.zeros(total, dtype=torch.bool)
        _bytes_of(tensor, piece.written).fill_(True)

    def noted(self, tensor: torch.Tensor) -> None:
        """Note memory that an operation has written for itself, in part perhaps."""
        piece = self._known(tensor)
        if piece is not None:
            piece.is_scratch = True

    def made_by(self, tensor: torch.Tensor) -> int | None:
        """Return the place of the operation that wrote a tensor's storage last."""
        piece = self._known(tensor)
        return piece.made_by if piece is not None else None

    def number(self, tensor: torch.Tensor) -> int | None:
        """Return the number of a tensor's storage; None where it was never noted."""
        piece = self._known(tensor)
        return piece.number if piece is not None else None

    def is_scratch(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor shows what an operation has written for itself."""
        piece = self._known(tensor)
        return piece is not None and piece.is_scratch

    def is_uninitialised(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor shows memory that nothing has written.

        Memory that holds something else than when it was reserved was written by somebody whom the
        trace does not see, such as NumPy: then nobody is known to have made it.
        """
        piece = self._known(tensor)
        if piece is None or not piece.is_raw or tensor.numel() == 0:
            return False
        written = None if piece.written is None else _bytes_of(tensor, piece.written)
        if written is not None and bool(written.all()):
            return False
        if piece.reserved is None:
            return True
        changed = _bytes_of(tensor, _bytes(tensor)) != _bytes_of(tensor, piece.reserved)
        if written is not None:
            changed &= ~written.to(changed.device)
        if not bool(changed.any()):
            return True
        piece.is_filled()
        piece.made_by = None
        return False

    def _copy_of_bytes(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return what a tensor's storage holds, where it holds anything and there is room."""
        size = _byte_count(tensor)
        if tensor.is_meta or not 0 < size <= _LARGEST_COPY or not self._has_room(size):
            return None
        try:
            copy = _bytes(tensor).clone()
        except (RuntimeError, NotImplementedError):  # a fake tensor
            return None
        self._copied_bytes += size
        return copy

    def _has_room(self, size: int) -> bool:
        """Tell whether another copy may be kept; those of memory that is gone make room for it."""
        if self._copied_bytes + size <= _LARGEST_COPIES:
            return True
        self._copied_bytes = 0
        for piece in self._pieces.values():
            if piece.alive.expired():  # type: ignore[no-untyped-call]
                piece.is_filled()
            elif piece.reserved is not None:
                self._copied_bytes += piece.reserved.numel()
        return self._copied_bytes + size <= _LARGEST_COPIES

    def _known(self, tensor: torch.Tensor) -> _Piece | None:
        storage = _storage(tensor)
        return self._pieces.get(storage._cdata) if storage is not None else None

    def _piece(self, tensor: torch.Tensor) -> _Piece | None:
        storage = _storage(tensor)
        if storage is None:
            return None
        piece = self._pieces.get(storage._cdata)
        if piece is None:
            weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            piece = self._pieces[storage._cdata] = _Piece(len(self._pieces), weak)
        return piece


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    if tensor.is_nested:  # which has no strides to tell its elements by
        return None
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # sparse tensors and the like have none
        return None


def _byte_count(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's storage, byte by byte."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _bytes_of(tensor: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return what of a storage's bytes, or of flags for them, a tensor shows.

    Shape (*tensor.shape, bytes of an element).
    """
    width = tensor.element_size()
    return whole.as_strided(
        (*tensor.shape, width),
        (*(stride * width for stride in tensor.stride()), 1),
        tensor.storage_offset() * width,
    )
