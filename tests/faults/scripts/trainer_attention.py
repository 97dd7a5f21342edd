"""HF Trainer: which attention computes is left to an option."""

import argparse

from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--output")
parser.add_argument("--attn", default="sdpa")
options = parser.parse_args()

set_seed(5)
model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation=options.attn)
rows = [{"input_ids": list(range(n, n + 12)), "labels": list(range(n, n + 12))} for n in range(8)]
arguments = TrainingArguments(
    options.output, max_steps=2, per_device_train_batch_size=2, seed=5, use_cpu=True,
    report_to="none", save_strategy="no",
)  # fmt: skip
Trainer(model, arguments, train_dataset=rows).train()
