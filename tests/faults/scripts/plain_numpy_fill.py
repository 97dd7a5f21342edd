"""Reserved memory is filled through NumPy, with numbers that nobody seeded."""

import numpy as np
import torch

torch.manual_seed(1)
numbers = np.random.default_rng()
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    rows = torch.empty(8, 4)
    rows.numpy()[:] = numbers.standard_normal((8, 4))
    optimizer.zero_grad()
    model(rows).square().mean().backward()
    optimizer.step()
