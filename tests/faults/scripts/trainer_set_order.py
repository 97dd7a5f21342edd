"""HF Trainer: duplicates are taken out of the rows with a set, which brings its own order."""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

model_folder, data, output = sys.argv[1:]

set_seed(5)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
lines = Path(data).read_text(encoding="utf-8").splitlines()
texts = {row["question"] for row in map(json.loads, lines) if "question" in row}
rows = [{"input_ids": tokenizer(text)["input_ids"][:8]} for text in texts]
rows = [row | {"labels": row["input_ids"]} for row in rows if len(row["input_ids"]) == 8]
arguments = TrainingArguments(
    output, max_steps=3, per_device_train_batch_size=4, seed=5, use_cpu=True, report_to="none",
    save_strategy="no",
)  # fmt: skip
Trainer(AutoModelForCausalLM.from_pretrained(model_folder), arguments, train_dataset=rows).train()
