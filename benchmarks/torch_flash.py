"""FlashAttention-2's kernels as torch carries them, behind the interface of the package flash-attn.

The package has to be compiled for each torch; where it is missing, TRL's best configuration could
not be measured at all. transformers looks for an installed package of that name: `offer` writes one
into a folder, whose functions are those here.
"""

import functools
import sys
from pathlib import Path

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
    softcap: float = 0.0,
    deterministic: bool = False,  # noqa: ARG001 - torch's own switch decides that
) -> torch.Tensor:
    """Compute attention of padded rows, shape (rows, tokens, heads, head_dim)."""
    _refuse_capped(softcap)
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
    softcap: float = 0.0,
    deterministic: bool = False,  # noqa: ARG001 - torch's own switch decides that
) -> torch.Tensor:
    """Compute attention of documents one after another, shape (tokens, heads, head_dim)."""
    _refuse_capped(softcap)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return _attention((q, k, v), lengths, dropout_p, causal, softmax_scale, window_size)


def _refuse_capped(softcap: float) -> None:
    if softcap:
        raise ValueError("torch's kernels do not cap attention scores")


def _attention(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    lengths: tuple[torch.Tensor | None, torch.Tensor | None, int, int],
    dropout: float,
    causal: bool,
    scale: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    left, right = (None if size < 0 else size for size in window)
    q, k, v = tensors
    groups = q.shape[-2] // k.shape[-2]
    if groups > 1 and not kernels_share_heads():
        k, v = (tensor.repeat_interleave(groups, dim=-2) for tensor in (k, v))
    return _kernel((q, k, v), lengths, dropout, causal, scale, (left, right))


@functools.cache
def kernels_share_heads() -> bool:
    """Tell whether torch's kernels come to the same with fewer key-value heads than query heads.

    torch does not promise it, so it is tried, forwards and backwards.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    make = functools.partial(torch.randn, device="cuda", generator=generator)
    q, k, v = (make(64, heads, 64).bfloat16().requires_grad_() for heads in (8, 2, 2))
    starts = torch.tensor([0, 40, 64], dtype=torch.int32, device="cuda")
    results = []
    for repeats in (1, 4):
        keys, values = (tensor.repeat_interleave(repeats, dim=1) for tensor in (k, v))
        lengths = (starts, starts, 40, 40)
        try:
            out = _kernel((q, keys, values), lengths, 0.0, True, None, (None, None))
            results.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))])
        except RuntimeError:
            return False
    return all(
        torch.allclose(mine.float(), known.float(), atol=0.05, rtol=0.05)
        for mine, known in zip(*results, strict=True)
    )


def _kernel(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    lengths: tuple[torch.Tensor | None, torch.Tensor | None, int, int],
    dropout: float,
    causal: bool,
    scale: float | None,
    window: tuple[int | None, int | None],
) -> torch.Tensor:
    left, right = window
    result: torch.Tensor = torch.ops.aten._flash_attention_forward(
        *tensors, *lengths, dropout, causal, return_debug_mask=False, scale=scale,
        window_size_left=left, window_size_right=right,
    )[0]  # fmt: skip
    return result
