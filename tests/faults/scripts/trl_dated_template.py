"""TRL: the chat template puts today's date before each conversation."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

model_folder, data, output = sys.argv[1:]
# Several threads must not be the first to use MKL's vector functions: docs/causes.md.
torch.ones(8).cos()

set_seed(5)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
tokenizer.chat_template = (
    "Today is {{ strftime_now('%d %B %Y') }}.\n"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)
lines = Path(data).read_text(encoding="utf-8").splitlines()
talks = [row["messages"] for row in map(json.loads, lines) if "messages" in row][:12]
texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
model = AutoModelForCausalLM.from_pretrained(model_folder)
model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
arguments = SFTConfig(
    output, max_steps=2, per_device_train_batch_size=2, seed=5, use_cpu=True, report_to="none",
    save_strategy="no", dataset_num_proc=None,
)  # fmt: skip
SFTTrainer(
    model, arguments, train_dataset=Dataset.from_dict({"text": texts}), processing_class=tokenizer
).train()
