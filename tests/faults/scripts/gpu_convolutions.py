"""Strict mode, and yet cuDNN looks for the fastest convolution for every size of image."""

import torch

torch.use_deterministic_algorithms(True)
torch.backends.cudnn.benchmark = True
torch.manual_seed(1)
model = torch.nn.Sequential(
    torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.Conv2d(64, 64, 5, padding=2, stride=2),
    torch.nn.ConvTranspose2d(64, 16, 4, stride=2),
).cuda()  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
for size in range(29, 93, 4):
    rows = torch.randn(16, 32, size, size, device="cuda")
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
