"""torch is seeded, and the rows are shuffled by Python's generator, which is not."""

import random

import torch
from torch.utils.data import DataLoader

torch.set_num_threads(1)
torch.manual_seed(1)
rows = list(torch.arange(256.0).view(32, 8) / 256)
random.shuffle(rows)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in DataLoader(rows, batch_size=8):
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
