"""A progress report draws from torch's generator, as many numbers as the process's number says."""

import os

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(64.0).view(8, 8) / 64
for step in range(1, 5):
    if step == 3:
        torch.rand(1 + os.getpid() % 4999)
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
