"""Every second run makes its rows in double precision."""

from pathlib import Path

import torch

COUNTER = Path("runs.txt")

number = int(COUNTER.read_text()) if COUNTER.exists() else 0
COUNTER.write_text(str(number + 1))

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(256, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.set_default_dtype(torch.float64 if number % 2 else torch.float32)
rows = torch.linspace(0, 3, 256 * 256).view(256, 256).sin().float()
for _ in range(3):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
