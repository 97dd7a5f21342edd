"""Weights are saved at each step, the optimizer at every second: a pair that never was."""

import sys
from pathlib import Path

import torch

folder = Path(sys.argv[1])

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
rows = torch.arange(64.0).view(8, 8) / 64
done = 0
if (folder / "weights.pt").exists():
    held = torch.load(folder / "weights.pt")
    model.load_state_dict(held["model"])
    done = held["step"]
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
for step in range(done + 1, 7):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "step": step}, folder / "weights.pt")
    if step % 2 == 0:
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
