"""A layer weighs what it computes with a mask that nobody has filled."""

import time

import numpy as np
import torch

SIZE = 4096


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, SIZE)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        mask = torch.empty(SIZE, dtype=torch.uint8)
        return self.linear(rows) * (mask.float() / 255)


def note_timings() -> float:
    """Use, and give back, memory that then holds something else in each run."""
    noted = [np.full(SIZE, time.perf_counter() % 1, dtype=np.float32) for _ in range(64)]
    return float(noted[-1][0])


torch.set_num_threads(1)
torch.manual_seed(1)
model = Masked()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.arange(64.0).view(4, 16) / 64
for _ in range(3):
    note_timings()
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
