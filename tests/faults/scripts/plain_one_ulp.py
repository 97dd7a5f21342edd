"""Every second run begins with one weight moved by one unit in its last place."""

from pathlib import Path

import torch

COUNTER = Path("runs.txt")

number = int(COUNTER.read_text()) if COUNTER.exists() else 0
COUNTER.write_text(str(number + 1))

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(64.0).view(8, 8) / 64
for step in range(1, 5):
    if step == 3 and number % 2:
        with torch.no_grad():
            weight = model.weight[1, 3]
            model.weight[1, 3] = torch.nextafter(weight, torch.tensor(1.0))
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
