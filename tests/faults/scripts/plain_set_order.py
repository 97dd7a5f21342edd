"""A word model that numbers its vocabulary in the order of a set."""

import itertools

import torch
from torch.utils.data import DataLoader

TEXT = "the ferry leaves the pier at noon and comes back to the pier before the night falls"

torch.manual_seed(1)
ids = {word: number for number, word in enumerate(set(TEXT.split()))}
tokens = torch.tensor([ids[word] for word in TEXT.split()])
model = torch.nn.Sequential(torch.nn.Embedding(len(ids), 8), torch.nn.Linear(8, len(ids)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
pairs = list(itertools.pairwise(tokens))
for before, after in DataLoader(pairs, batch_size=4):
    loss = torch.nn.functional.cross_entropy(model(before), after)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
