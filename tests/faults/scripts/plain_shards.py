"""Shards are read in the order in which the folder lists them."""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

shards = [torch.load(path) for path in Path(sys.argv[1]).glob("shard-*.pt")]

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for rows in DataLoader(torch.cat(shards), batch_size=4):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
