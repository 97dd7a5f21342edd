"""What the witness and the operation trace cost, as ratios inside one run.

`python benchmarks/witness.py DIR` trains LoRA on the model of `benchmarks/shapes.py` in a plain
loop, takes steps with and without the witness in turn, and reports the ratio of their medians; then
it takes one step under the operation trace. `--json FILE` keeps the figures.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from mltune_cli.witness.observer import Observer
from mltune_cli.witness.trace_record import TraceRequest

_WARM_UP = 4


class Loop:
    """A plain training loop: LoRA on all linear layers, bfloat16 base, AdamW."""

    def __init__(self, model: Path, tokens: int, micro_batches: int) -> None:
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        config = LoraConfig(r=16, target_modules="all-linear", lora_dropout=0.1)
        self.model: Any = get_peft_model(base, config).to(self.device)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.micro_batches = micro_batches
        rows = torch.randint(0, 4000, (4096, tokens))
        self._loader = DataLoader(list(rows), batch_size=1)
        self._rows = self._forever()

    def _forever(self) -> Iterator[torch.Tensor]:
        while True:
            yield from self._loader

    def step(self) -> float:
        """Take one step; return its seconds."""
        self._wait()
        start = time.perf_counter()
        for _ in range(self.micro_batches):
            ids = next(self._rows).to(self.device)
            loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss / self.micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure(loop: Loop, steps: int, folder: Path, *, with_trace: bool) -> dict[str, float]:
    """Return the medians of steps with and without the witness, and a traced step's time."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    observer = Observer(folder / "witness")
    # The first step of a watched optimizer digests the frozen weights too, once.
    for step in range(_WARM_UP + steps):
        is_watched = step % 2 == 0
        if is_watched:
            observer.install()
        taken = loop.step()
        if is_watched:
            observer.pause()
        if step >= _WARM_UP:
            seconds[is_watched].append(taken)
    observer.remove()
    plain = statistics.median(seconds[False])
    watched = statistics.median(seconds[True])
    figures = {"plain": plain, "witness": watched, "witness/plain": watched / plain}
    if not with_trace:
        return figures
    # The trace begins at the end of the step before.
    tracing = Observer(folder / "traced", trace=TraceRequest(step=2, keep_bytes=0))
    tracing.install()
    loop.step()
    traced = loop.step()
    tracing.remove()
    return {**figures, "traced": traced, "traced/plain": traced / plain}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--no-trace", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    loop = Loop(options.folder / "model", options.tokens, options.micro_batches)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(loop, options.steps, Path(folder), with_trace=not options.no_trace)
    figures = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps(figures, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
