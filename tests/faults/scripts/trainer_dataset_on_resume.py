"""HF Trainer: rows are augmented as they are read, from a generator that no checkpoint knows."""

import random
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

model_folder, output = sys.argv[1:]


class Cropped:
    """Rows that begin at a random place, each time they are asked for."""

    def __init__(self) -> None:
        self.places = random.Random(5)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        start = index + self.places.randrange(40)
        tokens = list(range(start, start + 10))
        return {"input_ids": tokens, "labels": tokens}


set_seed(5)
arguments = TrainingArguments(
    output, max_steps=4, per_device_train_batch_size=2, seed=5, use_cpu=True, report_to="none",
    save_steps=1, ignore_data_skip=True,
)  # fmt: skip
trainer = Trainer(
    AutoModelForCausalLM.from_pretrained(model_folder), arguments, train_dataset=Cropped()
)
has_checkpoint = any(Path(output).glob("checkpoint-*"))
trainer.train(resume_from_checkpoint=has_checkpoint or None)
