"""A compiled layer; Inductor measures, with an empty cache, which kernels are fastest."""

import argparse

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--mode", default="default")
options = parser.parse_args()

torch.manual_seed(1)
model = torch.nn.Sequential(
    torch.nn.Linear(1024, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 1024), torch.nn.Softmax(-1)
).to("cuda", torch.bfloat16)  # fmt: skip
compiled = torch.compile(model, mode=options.mode)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)
rows = torch.randn(777, 1024, device="cuda", dtype=torch.bfloat16)
for _ in range(2):
    loss = compiled(rows).float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
