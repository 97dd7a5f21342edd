"""The dropout behind an LSTM is not seeded; the LSTM itself repeats."""

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
lstm, head = torch.nn.LSTM(4, 8, batch_first=True), torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW([*lstm.parameters(), *head.parameters()], lr=0.01)
data = [(torch.randn(3, 5, 4), torch.randn(3, 1)) for _ in range(3)]
torch.seed()
for rows, labels in data:
    last = torch.dropout(lstm(rows)[0][:, -1], 0.5, train=True)
    loss = (head(last) - labels).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
