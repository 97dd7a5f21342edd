"""Models of well-known shapes with random weights, and rows to train them on.

`python benchmarks/shapes.py 1b DIR` writes DIR/model and DIR/train.jsonl. Speed and equality of
bits depend on shapes and number formats alone, so no download is needed.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mltune_cli.bundled import bundled_data, bundled_model
from mltune_cli.training.model import TOKENIZER_FILES

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}


def write_model(shape: str, folder: Path) -> Path:
    """Write a Llama model of a shape in bfloat16, with the bundled tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=131072, **SHAPES[shape])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        source = bundled_model("mltune/tiny") / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
    return folder


def write_rows(path: Path, rows: int = 2000) -> Path:
    """Write rows of plain text, the bundled data set's over and over, each a little different."""
    source = bundled_data("mltune/repro_dataset/train.jsonl")
    lines = [json.dumps(json.loads(line)) for line in source.read_text().splitlines()]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            text = f"{number}. " + " ".join(lines[(number + k) % len(lines)] for k in range(4))
            stream.write(json.dumps({"text": text}) + "\n")
    return path


def main() -> None:
    """Write a model and its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_model(arguments.shape, arguments.folder / "model")
    write_rows(arguments.folder / "train.jsonl")


if __name__ == "__main__":
    main()
