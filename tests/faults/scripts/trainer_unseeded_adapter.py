"""HF Trainer: the adapter is made before the Trainer sets the seed that it was given."""

import sys

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model_folder, output = sys.argv[1:]

model = AutoModelForCausalLM.from_pretrained(model_folder)
model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
rows = [{"input_ids": list(range(n, n + 12)), "labels": list(range(n, n + 12))} for n in range(8)]
arguments = TrainingArguments(
    output, max_steps=3, per_device_train_batch_size=2, seed=5, use_cpu=True, report_to="none",
    save_strategy="no",
)  # fmt: skip
Trainer(model, arguments, train_dataset=rows).train()
