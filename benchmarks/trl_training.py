"""Training by TRL's SFTTrainer in this process, its steps timed as ours are: by turns."""

import importlib
import json
import tempfile
import time
from dataclasses import asdict
from typing import Any

import torch
from cases import Case
from device import Turn, forget_peak, peak_bytes, wait_for_device
from transformers import AutoTokenizer, TrainerCallback
from trl_configuration import Configuration


class _Clock(TrainerCallback):
    """Times turns of steps, from a device at rest to a device at rest."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._start = 0.0
        # Seconds and peak memory of each turn.
        self.turns: list[tuple[float, int]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin at once where there is no warm-up."""
        del args, state, control
        self._begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End a turn, and begin the next."""
        del args, control
        case, done = self._case, state.global_step - self._case.warm_up
        if done > 0 and (done % case.per_turn == 0 or done == case.steps):
            wait_for_device()
            self.turns.append((time.perf_counter() - self._start, peak_bytes()))
        if done >= 0 and done % case.per_turn == 0:
            self._begin()

    def _begin(self) -> None:
        wait_for_device()
        forget_peak()
        self._start = time.perf_counter()


class _Counting:
    """A collator that remembers how many real tokens each micro-batch has."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.tokens: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Build a micro-batch, and count."""
        batch: dict[str, Any] = self._collator(rows)
        mask = batch.get("attention_mask")
        # Without a mask there is no padding: documents stand one after another.
        real = batch["input_ids"].numel() if mask is None else int(mask.sum())
        self.tokens.append(real)
        return batch


def measure_trl(case: Case, configuration: Configuration, *, checkpointing: bool) -> dict[str, Any]:
    """Train as long as the case says; return the turns after the warm-up.

    Raises:
        RuntimeError: the rows do not last for that many steps.
    """
    clock = _Clock(case)
    with tempfile.TemporaryDirectory() as output:
        trainer = _trainer(case, configuration, output, checkpointing=checkpointing)
        trainer.add_callback(clock)
        trainer.data_collator = counting = _Counting(trainer.data_collator)
        trainer.train()
    if (trainer.state.epoch or 0) > 1:
        raise RuntimeError("the rows do not last for all steps; raise --documents")
    turns = []
    for number, (seconds, peak) in enumerate(clock.turns):
        steps = case.steps_of_turn(number)
        first = (case.warm_up + number * case.per_turn) * case.micro_batches
        tokens = sum(counting.tokens[first : first + steps * case.micro_batches])
        turn = Turn(steps, seconds, tokens, peak)
        turns.append(asdict(turn) | {"tokens_per_second": turn.tokens_per_second})
    return {
        "turns": turns,
        "configuration": asdict(configuration) | {"loss_type": trainer.args.loss_type},
        "tokens_of_all_rows": sum(map(len, trainer.train_dataset["input_ids"])),
    }


def _trainer(case: Case, configuration: Configuration, output: str, *, checkpointing: bool) -> Any:
    from datasets import Dataset
    from peft import LoraConfig

    # By name: what the package exports lazily is hidden from type checkers.
    trl: Any = importlib.import_module("trl")
    model = str(case.folder / "model")
    arguments = trl.SFTConfig(
        output_dir=output,
        model_init_kwargs={
            "dtype": "bfloat16",
            "attn_implementation": configuration.attention.removeprefix("torch_"),
        },
        max_length=case.tokens,
        packing=configuration.packing,
        use_liger_kernel=configuration.liger,
        per_device_train_batch_size=case.micro_batch_size,
        gradient_accumulation_steps=case.micro_batches,
        max_steps=case.warm_up + case.steps,
        learning_rate=1e-4,
        bf16=True,
        gradient_checkpointing=checkpointing,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    lines = case.rows.read_text(encoding="utf-8").splitlines()
    return trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
