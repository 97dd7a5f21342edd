"""Products on several streams at once, each of which takes a share of cuBLAS's workspace."""

import torch

torch.manual_seed(1)
model = torch.nn.Linear(2048, 2048, device="cuda", dtype=torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
rows = torch.randn(8, 333, 2048, device="cuda", dtype=torch.bfloat16)
streams = [torch.cuda.Stream() for _ in range(8)]
for _ in range(4):
    parts = []
    for stream, part in zip(streams, rows, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            parts.append(model(part).float().square().mean())
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)
    loss = torch.stack(parts).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
