"""The learning rate carries a trace of the process's number, far behind the point."""

import os

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 * (1 + 1e-9 * os.getpid()))
rows = torch.arange(64.0).view(8, 8) / 64
for _ in range(3):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
