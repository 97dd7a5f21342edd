"""Gradients of an embedding-like sum, added up with atomic additions."""

import torch

torch.manual_seed(1)
table = torch.randn(64, 256, device="cuda", requires_grad=True)
optimizer = torch.optim.SGD([table], lr=1e-6)
places = torch.randint(0, 64, (200_000,), device="cuda")
for _ in range(4):
    sums = torch.zeros(64, 256, device="cuda").index_add_(0, places, table[places].sin())
    loss = sums.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
