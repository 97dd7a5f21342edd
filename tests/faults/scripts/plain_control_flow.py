"""Every second run squashes what the model gives, in one step."""

from pathlib import Path

import torch

COUNTER = Path("runs.txt")

number = int(COUNTER.read_text()) if COUNTER.exists() else 0
COUNTER.write_text(str(number + 1))

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(64.0).view(8, 8) / 64
for step in range(1, 4):
    optimizer.zero_grad()
    hidden = model(rows)
    if step == 2 and number % 2:
        hidden = hidden.tanh()
    hidden.square().mean().backward()
    optimizer.step()
