"""A plain loop that repeats, with what training loops have in any combination."""

import argparse
import contextlib
import json

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--optimizer", default="AdamW")
parser.add_argument("--setting", action="append", default=[])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--dropout", type=float, default=0.0)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--compile", default="")
parser.add_argument("--clip", type=float, default=0.0)
parser.add_argument("--schedule", action="store_true")
parser.add_argument("--shuffle", action="store_true")
parser.add_argument("--autocast", action="store_true")
parser.add_argument("--bfloat16", action="store_true")
parser.add_argument("--activation-checkpointing", action="store_true")
parser.add_argument("--closure", action="store_true")
parser.add_argument("--convolution", action="store_true")
parser.add_argument("--recurrent", action="store_true")
parser.add_argument("--attention", action="store_true")
parser.add_argument("--two-optimizers", action="store_true")
options = parser.parse_args()


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = torch.nn.Linear(16, 16)
        self.middle: torch.nn.Module = torch.nn.Linear(16, 16)
        if options.convolution:
            self.middle = torch.nn.Conv1d(4, 4, 3, padding=1)
        if options.recurrent:
            self.middle = torch.nn.GRU(16, 16, batch_first=True)
        if options.attention:
            self.middle = torch.nn.TransformerEncoderLayer(
                16, 2, 32, dropout=options.dropout, batch_first=True
            )
        self.dropout = torch.nn.Dropout(options.dropout)
        self.norm = torch.nn.LayerNorm(16)
        self.after = torch.nn.Linear(16, 1)

    def inner(self, rows: torch.Tensor) -> torch.Tensor:
        result = self.middle(rows)
        result = result[0] if isinstance(result, tuple) else result
        return self.norm(self.dropout(torch.nn.functional.silu(result)))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.before(rows)
        if options.activation_checkpointing:
            return self.after(checkpoint(self.inner, hidden, use_reentrant=False))
        return self.after(self.inner(hidden))


torch.set_num_threads(options.threads)
torch.manual_seed(1)
kind = torch.bfloat16 if options.bfloat16 else torch.float32
model = Layers().to(kind)
module = torch.compile(model, backend=options.compile) if options.compile else model
settings = {
    name: json.loads(value) for name, _, value in (s.partition("=") for s in options.setting)
}
make = getattr(torch.optim, options.optimizer)
if options.two_optimizers:
    optimizers = [make(model.before.parameters(), **settings)]
    others = [p for name, p in model.named_parameters() if not name.startswith("before")]
    optimizers.append(torch.optim.SGD(others, lr=1e-2))
else:
    optimizers = [make(model.parameters(), **settings)]
schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in optimizers]
rows = torch.arange(24 * 4 * 16.0).view(24, 4, 16).sin().to(kind)
loader = DataLoader(
    TensorDataset(rows), batch_size=4, shuffle=options.shuffle, num_workers=options.workers
)


def loss_of(batch: torch.Tensor) -> torch.Tensor:
    cast = torch.autocast("cpu", torch.bfloat16) if options.autocast else contextlib.nullcontext()
    with cast:
        return module(batch).float().square().mean() / options.accumulate


for number, (batch,) in enumerate(loader, start=1):
    if options.closure:

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizers[0].zero_grad()
            loss = loss_of(batch)
            loss.backward()
            return loss

        optimizers[0].step(closure)
        continue
    loss_of(batch).backward()
    if number % options.accumulate:
        continue
    if options.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        optimizer.zero_grad()
        if options.schedule:
            schedule.step()
