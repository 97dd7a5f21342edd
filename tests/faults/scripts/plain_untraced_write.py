"""Activations are scaled in place, behind torch's back, by what a clock measured."""

import time

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
encoder, head = torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.1)
rows = torch.arange(32.0).view(4, 8) / 32
for step in range(1, 5):
    hidden = encoder(rows)
    if step == 3:
        hidden.detach().numpy()[0] *= 1 + time.perf_counter() % 1
    loss = head(hidden.tanh()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
