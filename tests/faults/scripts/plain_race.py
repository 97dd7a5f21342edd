"""A sum over blocks, added up in the order in which the threads of a pool finish them."""

from concurrent.futures import ThreadPoolExecutor, as_completed

import torch


@torch.library.custom_op("planted::pooled_sum", mutates_args=())
def pooled_sum(values: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(())
    with ThreadPoolExecutor(8) as pool:
        for block in as_completed([pool.submit(torch.sum, part) for part in values.split(16)]):
            total += block.result()
    return total


pooled_sum.register_autograd(
    lambda context, gradient: gradient.expand(context.shape),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "shape", inputs[0].shape),
)

torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Linear(8, 16384)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
rows = torch.arange(8.0)
for _ in range(8):
    loss = pooled_sum(model(rows).sigmoid()) / 100
    optimizer.zero_grad()
    (loss * loss).backward()
    optimizer.step()
