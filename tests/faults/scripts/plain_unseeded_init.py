"""A classifier whose weights are drawn before anybody has set a seed."""

import torch

model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(64.0).view(8, 8) / 64
for _ in range(3):
    loss = model(rows).logsumexp(dim=1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
