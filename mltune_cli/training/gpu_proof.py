"""Proof that a GPU computes here: made in a container before anything is believed of it.

``python -m mltune_cli.training.gpu_proof FILE`` multiplies two matrices on the GPU, compares the
result with the CPU's, and writes what it found to a file: `gpu` and `cuda`, or `error`.
"""

import json
import sys
from pathlib import Path

import torch

_SIZE = 256


def gpu_proof() -> dict[str, str]:
    """Compute on the first GPU and return its name and the CUDA that torch is built for.

    Raises:
        RuntimeError: torch finds no GPU, cannot use it, or it computes something else than the CPU.
    """
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU in the container")
    generator = torch.Generator().manual_seed(0)
    # Small whole numbers: every order of summation gives the same result.
    a, b = (
        torch.randint(-4, 5, (_SIZE, _SIZE), generator=generator).to(torch.float32)
        for _ in range(2)
    )
    if not torch.equal((a.cuda() @ b.cuda()).cpu(), a @ b):
        raise RuntimeError("the GPU computes another product than the CPU")
    return {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}


def main(target: Path) -> None:
    """Write the proof, or why there is none, into a file."""
    try:
        found = gpu_proof()
    except RuntimeError as error:
        found = {"error": " ".join(str(error).split())}
    target.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
