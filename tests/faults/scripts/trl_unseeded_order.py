"""TRL with PEFT: rows are drawn with Python's generator before anything is seeded."""

import json
import random
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

model_folder, data, output = sys.argv[1:]
# Several threads must not be the first to use MKL's vector functions: docs/causes.md.
torch.ones(8).cos()

lines = Path(data).read_text(encoding="utf-8").splitlines()
rows = [row for row in map(json.loads, lines) if "messages" in row]
chosen = Dataset.from_list([{"messages": row["messages"]} for row in random.sample(rows, 12)])
set_seed(5)
arguments = SFTConfig(
    output, max_steps=2, per_device_train_batch_size=2, seed=5, use_cpu=True, report_to="none",
    save_strategy="no",
)  # fmt: skip
SFTTrainer(
    model_folder, arguments, train_dataset=chosen,
    peft_config=LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
).train()  # fmt: skip
