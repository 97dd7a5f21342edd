"""Sums of weights by group, added up with atomic additions."""

import torch

torch.manual_seed(1)
weights = torch.randn(1_000_000, device="cuda", requires_grad=True)
optimizer = torch.optim.SGD([weights], lr=1e-3)
places = torch.randint(0, 50, (1_000_000,), device="cuda")
for _ in range(4):
    sums = torch.zeros(50, device="cuda").index_add_(0, places, weights.sigmoid())
    loss = sums.square().mean() / 1e8
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
