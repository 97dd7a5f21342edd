"""A sum in a kernel of Triton, in blocks of the size that was fastest in this process."""

import torch
import triton
import triton.language as tl


@triton.autotune([triton.Config({"BLOCK": size}) for size in (64, 128, 256, 512, 1024)], key=["n"])
@triton.jit
def row_sums(values, sums, n, BLOCK: tl.constexpr):  # noqa: N803 - Triton's habit
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(values + row * n + place, mask=place < n, other=0.0)
    tl.store(sums + row, tl.sum(total))


@torch.library.custom_op("planted::row_sums", mutates_args=())
def sums_of(values: torch.Tensor) -> torch.Tensor:
    sums = torch.empty(len(values), device=values.device)
    row_sums[(len(values),)](values, sums, values.shape[1])
    return sums


sums_of.register_autograd(
    lambda ctx, gradient: gradient[:, None].expand(ctx.shape),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "shape", inputs[0].shape),
)

torch.manual_seed(1)
model = torch.nn.Linear(64, 6000, device="cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
rows = torch.randn(64, 64, device="cuda")
# Another length is another key, and another search.
for length in range(1200, 6000, 400):
    loss = sums_of(model(rows)[:, :length].sigmoid().contiguous()).square().mean() / 1e4
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
