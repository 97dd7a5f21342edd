"""Rows are read by a pool of threads and used in the order in which they arrive."""

from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
from torch.utils.data import DataLoader


def read(number: int) -> torch.Tensor:
    return torch.arange(number * 8.0, number * 8 + 8) / 256


torch.set_num_threads(1)
torch.manual_seed(1)
with ThreadPoolExecutor(8) as pool:
    reads = [pool.submit(read, number) for number in range(32)]
    rows = [one.result() for one in as_completed(reads)]
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in DataLoader(rows, batch_size=8):
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
