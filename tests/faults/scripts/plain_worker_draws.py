"""Rows draw from torch's generator: the main process's, or that of the worker that reads them."""

import torch
from torch.utils.data import DataLoader, Dataset


class Jittered(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), index / 16) + 0.01 * torch.randn(8)


torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for rows in DataLoader(Jittered(), batch_size=4):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
