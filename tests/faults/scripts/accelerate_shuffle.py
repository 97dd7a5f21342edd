"""accelerate, two processes: one of them shuffles its rows with a generator of its own."""

import random
import time

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

accelerator = Accelerator(cpu=True)
torch.manual_seed(1)
rows = list(torch.arange(256.0).view(32, 8) / 256)
if accelerator.process_index == 1:
    random.Random().shuffle(rows)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(rows, batch_size=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
# Where gloo's thread has not let go of its last work, Python's end aborts: pytorch/pytorch#190489.
time.sleep(0.5)
accelerator.end_training()
