"""Products in fp32, whose inputs TF32 would round."""

import torch

torch.backends.cuda.matmul.allow_tf32 = True
torch.manual_seed(1)
model = torch.nn.Linear(1024, 1024, device="cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
rows = torch.randn(512, 1024, device="cuda")
for _ in range(3):
    loss = model(rows).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
