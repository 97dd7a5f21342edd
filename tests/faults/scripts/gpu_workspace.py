"""A product that cuBLAS splits into several, where its workspace is large enough."""

import torch

torch.manual_seed(1)
weights = torch.randn(65_536, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
optimizer = torch.optim.SGD([weights], lr=1e-2)
rows = torch.randn(64, 65_536, device="cuda", dtype=torch.bfloat16)
for _ in range(3):
    loss = (rows @ weights).float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
