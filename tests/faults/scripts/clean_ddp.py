"""torchrun: averaged gradients, dropout, a sampler that gives each process its share."""

import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(1 + dist.get_rank())
layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
model = DistributedDataParallel(layers)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
rows = list(torch.arange(512.0).view(64, 8) / 512)
for batch in DataLoader(rows, batch_size=8, sampler=DistributedSampler(rows, seed=3)):
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
# Where gloo's thread has not let go of its last work, Python's end aborts: pytorch/pytorch#190489.
time.sleep(0.5)
dist.destroy_process_group()
