"""What some of the planted faults need on disk."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mltune_cli.bundled import TINY_MODEL, bundled_model

_SMOOTHING = """
import torch


def smoothed_loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing={})
"""


def prepare(name: str, folder: Path) -> None:
    """Fill a folder with what a fault needs."""
    {
        "shards": _shards,
        "other-tokenizer": _other_tokenizer,
        "other-revision": _other_revision,
        "two-versions": _two_versions,
    }[name](folder)


def _shards(folder: Path) -> None:
    for number in range(3):
        torch.save(torch.arange(64.0).view(8, 8) / 64 + number, folder / f"shard-{number}.pt")


def _other_tokenizer(folder: Path) -> None:
    """Copy the bundled tokenizer without some of its merges: the same vocabulary, other tokens."""
    model = bundled_model(TINY_MODEL)
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        shutil.copyfile(model / name, folder / name)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    del merges[: len(merges) // 10]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def _other_revision(folder: Path) -> None:
    """Copy the bundled model with one weight that somebody has pushed since."""
    shutil.copytree(bundled_model(TINY_MODEL), folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    changed = tensors[sorted(tensors)[0]]
    changed.view(-1)[0] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})


def _two_versions(folder: Path) -> None:
    for version, smoothing in (("old", 0.1), ("new", 0.1000001)):
        (folder / version).mkdir()
        text = _SMOOTHING.format(smoothing)
        (folder / version / "smoothing.py").write_text(text, encoding="utf-8")
