"""accelerate, two processes: each adds noise from NumPy's generator, which nobody has seeded."""

import time

import numpy as np
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
torch.manual_seed(1)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
rows = torch.arange(64.0).view(8, 8) / 64
for _ in range(3):
    noise = torch.from_numpy(np.random.normal(size=(8, 8))).float()
    loss = model(rows + 0.01 * noise).square().mean()
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
# Where gloo's thread has not let go of its last work, Python's end aborts: pytorch/pytorch#190489.
time.sleep(0.5)
accelerator.end_training()
