"""A checkpoint holds weights and optimizer, and not the state that dropout draws from."""

import sys
from pathlib import Path

import torch

checkpoint = Path(sys.argv[1]) / "checkpoint.pt"

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
rows = torch.arange(64.0).view(8, 8) / 64
done = 0
if checkpoint.exists():
    held = torch.load(checkpoint)
    model.load_state_dict(held["model"])
    optimizer.load_state_dict(held["optimizer"])
    done = held["step"]
for step in range(done + 1, 6):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    part = checkpoint.with_suffix(".part")
    torch.save(held, part)
    part.replace(checkpoint)
