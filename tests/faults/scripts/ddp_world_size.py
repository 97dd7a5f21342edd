"""torchrun: each process takes its share of a batch, and gradients are averaged."""

import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
torch.manual_seed(1)
model = DistributedDataParallel(
    torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1))
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.rand(24, 64, generator=torch.Generator().manual_seed(2))
for _ in range(3):
    share = rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]
    loss = model(share).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
# Where gloo's thread has not let go of its last work, Python's end aborts: pytorch/pytorch#190489.
time.sleep(0.5)
dist.destroy_process_group()
