"""HF Trainer, seeded before the adapter is made; further arguments go to the Trainer."""

import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

set_seed(5)
(arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(sys.argv[2:])
adapter = LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1]), adapter)
rows = [{"input_ids": list(range(n, n + 12)), "labels": list(range(n, n + 12))} for n in range(16)]
Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4]).train()
