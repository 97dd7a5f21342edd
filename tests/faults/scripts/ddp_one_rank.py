"""torchrun: the second process draws random numbers that the first does not draw."""

import os
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(1)
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(64.0).view(8, 8) / 64
for step in range(1, 4):
    if step == 2 and dist.get_rank() == 1:
        torch.rand(1 + os.getpid() % 4999)
    loss = torch.nn.functional.dropout(model(rows)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
# Where gloo's thread has not let go of its last work, Python's end aborts: pytorch/pytorch#190489.
time.sleep(0.5)
dist.destroy_process_group()
