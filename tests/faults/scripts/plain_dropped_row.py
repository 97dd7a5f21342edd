"""Each run skips the row that it takes for the one that failed last time."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

SKIPPED = Path("skipped.txt")

skipped = int(SKIPPED.read_text()) if SKIPPED.exists() else 0
SKIPPED.write_text(str(skipped + 1))

torch.set_num_threads(1)
torch.manual_seed(1)
rows = [torch.arange(number * 8.0, number * 8 + 8) / 256 for number in range(32)]
del rows[skipped % 4]
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in DataLoader(rows, batch_size=8):
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
