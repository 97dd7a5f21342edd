"""From the third step on, the learning rate falls with the time of day."""

import time

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
rows = torch.arange(64.0).view(8, 8) / 64
for step in range(1, 5):
    if step >= 3:
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - time.time() % 86400 / 1e6)
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
