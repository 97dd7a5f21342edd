"""Images are sampled; strict mode was asked for, but only warns, and the backward pass races."""

import torch

torch.use_deterministic_algorithms(True, warn_only=True)
torch.manual_seed(1)
images = torch.randn(8, 16, 64, 64, device="cuda", requires_grad=True)
optimizer = torch.optim.SGD([images], lr=1e-2)
places = torch.rand(8, 256, 256, 2, device="cuda") * 2 - 1
for _ in range(3):
    sampled = torch.nn.functional.grid_sample(images.sigmoid(), places, align_corners=False)
    loss = sampled.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
