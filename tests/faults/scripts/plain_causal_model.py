"""A plain loop over a causal model and its tokenizer, each from a folder that is given."""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--tokenizer")
parser.add_argument("--data")
options = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(1)
tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
model = AutoModelForCausalLM.from_pretrained(options.model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
rows = map(json.loads, Path(options.data).read_text(encoding="utf-8").splitlines())
texts = [row["question"] for row in rows if "question" in row][:3]
for text in texts:
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    loss = model(input_ids=tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
