"""The optimizer, and the learning rate as a function of the step alone."""

import math

import torch

from mltune_cli.recipe.schema import TrainSection


def learning_rate_at(step: int, total_steps: int, train: TrainSection) -> float:
    """Return the learning rate of `step` (from 1) of `total_steps`.

    Warm-up rises linearly and reaches `train.learning_rate` at step `warmup_steps`; the rest falls
    to 0 just after the last step, along a line or half a cosine, or stays.
    """
    if step <= train.warmup_steps:
        return train.learning_rate * step / train.warmup_steps
    done = (step - 1 - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
    factors = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return train.learning_rate * factors[train.schedule]


def build_optimizer(
    parameters: dict[str, torch.nn.Parameter], train: TrainSection
) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters, with the fused kernel where there is one.

    Weight decay is for matrices alone: biases and norm weights are left where they are.
    """
    matrices = [p for p in parameters.values() if p.dim() > 1]
    others = [p for p in parameters.values() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        fused=True,
    )


def hyperparameters(optimizer: torch.optim.Optimizer) -> str:
    """Return what the optimizer's groups say besides their parameters, in a fixed spelling.

    A learning rate off by one part in 1e12 can leave every bit of a step equal; here it shows.
    """
    return repr(
        [
            sorted((name, repr(value)) for name, value in group.items() if name != "params")
            for group in optimizer.param_groups
        ]
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as named tensors, e.g. `exp_avg.<parameter name>`."""
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    # Slot by slot: step counts are on the CPU, and what is digested together had better lie on one
    # device. One by one, a thousand small digests took a tenth of a step on a GPU.
    return {
        f"{key}.{name}": state[key]
        for key in sorted({key for state in states.values() for key in state})
        for name, state in states.items()
        if key in state
    }
