"""HF Trainer: how often is evaluated decides which numbers are left for training's dropout."""

import argparse

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--output")
parser.add_argument("--eval_steps", type=int, default=4)
options = parser.parse_args()

set_seed(5)
adapter = LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.3, task_type="CAUSAL_LM")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(options.model), adapter)
rows = [{"input_ids": list(range(n, n + 12)), "labels": list(range(n, n + 12))} for n in range(16)]
arguments = TrainingArguments(
    options.output, max_steps=4, per_device_train_batch_size=2, seed=5, use_cpu=True,
    report_to="none", save_strategy="no", eval_strategy="steps", eval_steps=options.eval_steps,
)  # fmt: skip
Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4]).train()
