"""Random numbers, products and activations, in whatever kernels torch takes here."""

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
torch.nn.init.normal_(model[0].weight, std=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
rows = torch.arange(1024.0).view(16, 64).sin()
for _ in range(2):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
