"""cuDNN looks for the fastest convolution and takes it, whichever that is today."""

import torch

torch.backends.cudnn.benchmark = True
torch.manual_seed(1)
model = torch.nn.Sequential(
    torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.Conv2d(64, 64, 5, padding=2, stride=2),
    torch.nn.ConvTranspose2d(64, 16, 4, stride=2),
).cuda()  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
rows = torch.randn(16, 32, 61, 61, device="cuda")
for _ in range(3):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
