"""Every second run computes its matrix products in a lower precision."""

from pathlib import Path

import torch

COUNTER = Path("runs.txt")

number = int(COUNTER.read_text()) if COUNTER.exists() else 0
COUNTER.write_text(str(number + 1))
torch.set_float32_matmul_precision("medium" if number % 2 else "highest")

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(256, 256)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(256 * 256.0).view(256, 256) / 65536
for _ in range(3):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
