"""A loss that comes from a small package, in whichever version is found first."""

import torch
from smoothing import smoothed_loss

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(64.0).view(8, 8) / 64
for _ in range(3):
    loss = smoothed_loss(model(rows), torch.arange(8) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
