"""TRL with PEFT, seeded before the adapter is made; further arguments go to the trainer."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser, set_seed
from trl import SFTConfig, SFTTrainer

model_folder, data, *rest = sys.argv[1:]
(arguments,) = HfArgumentParser(SFTConfig).parse_args_into_dataclasses(rest)
# Several threads must not be the first to use MKL's vector functions: docs/causes.md.
torch.ones(8).cos()

set_seed(arguments.seed)
rows = map(json.loads, Path(data).read_text(encoding="utf-8").splitlines())
talks = [{"messages": row["messages"]} for row in rows if "messages" in row][:12]
model = AutoModelForCausalLM.from_pretrained(model_folder)
adapter = LoraConfig(target_modules=["q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
model = get_peft_model(model, adapter)
SFTTrainer(model, arguments, train_dataset=Dataset.from_list(talks)).train()
