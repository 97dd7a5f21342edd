"""FlashAttention-2's kernels as torch carries them, behind the interface of the package flash-attn.

The package has to be compiled for each torch; where it is missing, TRL's best configuration could
not be measured at all. transformers looks for an installed package of that name: `offer` writes one
into a folder, whose functions are those here.
"""

import sys
from pathlib import Path
from typing import Any

import torch

# The version that transformers asks for is 2.3.3 or newer.
_VERSION = "2.8.3"
_PACKAGE = """\
from torch_flash import flash_attn_func, flash_attn_varlen_func
flash_attn_with_kvcache = None
"""
_PADDING = """\
from transformers.modeling_flash_attention_utils import _pad_input as pad_input
from transformers.modeling_flash_attention_utils import _unpad_input as unpad_input
"""


def offer(folder: Path) -> None:
    """Make the package importable, from a folder, in this process; before transformers is."""
    facts = folder / f"flash_attn-{_VERSION}.dist-info"
    files = {
        folder / "flash_attn" / "__init__.py": _PACKAGE,
        folder / "flash_attn" / "bert_padding.py": _PADDING,
        facts / "METADATA": f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {_VERSION}\n",
        facts / "top_level.txt": "flash_attn\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **_: Any,
) -> torch.Tensor:
    """Compute attention of padded rows, shape (rows, tokens, heads, head_dim)."""
    lengths = (None, None, q.shape[1], k.shape[1])
    return _attention((q, k, v), lengths, dropout_p, causal, softmax_scale, window_size)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **_: Any,
) -> torch.Tensor:
    """Compute attention of documents one after another, shape (tokens, heads, head_dim)."""
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return _attention((q, k, v), lengths, dropout_p, causal, softmax_scale, window_size)


def _attention(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    lengths: tuple[torch.Tensor | None, torch.Tensor | None, int, int],
    dropout: float,
    causal: bool,
    scale: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    left, right = (None if size < 0 else size for size in window)
    result: torch.Tensor = torch.ops.aten._flash_attention_forward(
        *tensors, *lengths, dropout, causal, return_debug_mask=False, scale=scale,
        window_size_left=left, window_size_right=right,
    )[0]  # fmt: skip
    return result
