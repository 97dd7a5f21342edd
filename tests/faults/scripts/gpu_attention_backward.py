"""Flash attention, whose backward pass adds up the gradients of queries as they come."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.manual_seed(1)
project = torch.nn.Linear(128, 3 * 128, device="cuda", dtype=torch.bfloat16)
optimizer = torch.optim.SGD(project.parameters(), lr=1e-2)
rows = torch.randn(4, 8, 2048, 128, device="cuda", dtype=torch.bfloat16)
for _ in range(3):
    query, key, value = project(rows).chunk(3, dim=-1)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    loss = mixed.float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
