"""Three models at a time, each in a process of its own that `multiprocessing` starts."""

import multiprocessing
import random
import time

import torch


def fold(number: int) -> None:
    time.sleep(random.random() / 2)  # which one is the first to step is left to chance
    torch.manual_seed(number)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    folds = [context.Process(target=fold, args=(number,)) for number in range(3)]
    for one in folds:
        one.start()
    for one in folds:
        one.join()
