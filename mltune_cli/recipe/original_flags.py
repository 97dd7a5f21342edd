"""The flags of the script that mltune grew out of, as recipe entries.

Pipelines written for that script go on working: `train` takes each flag with underscores or with
hyphens.
"""

from mltune_cli.errors import UsageError
from mltune_cli.recipe.layers import Entry

_KEYS = {
    "model_name_or_path": "model.name_or_path",
    "train_file": "data.train",
    "validation_file": "data.validation",
    "output_dir": "output_dir",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.micro_batch_size",
    "seed": "reproducibility.seed",
}


def entries_from_flags(
    *, logging_strategy: str | None, logging_steps: int | None, **flags: str | int | None
) -> dict[str, Entry]:
    """Return the recipe entries of those flags that were given.

    Raises:
        UsageError: an unknown logging strategy, or one that contradicts `--logging_steps`.
    """
    entries = {
        _KEYS[name]: Entry(value, f"--{name}") for name, value in flags.items() if value is not None
    }
    if logging_strategy is None:
        if logging_steps is not None:
            entries["log.every_steps"] = Entry(logging_steps, "--logging_steps")
        return entries
    if logging_strategy not in ("steps", "epoch", "no"):
        raise UsageError(
            f"--logging_strategy: must be steps, epoch or no, not {logging_strategy!r}"
        )
    if logging_strategy != "steps" and logging_steps is not None:
        raise UsageError(
            f"--logging_steps: has no meaning with --logging_strategy {logging_strategy}; drop one"
        )
    value: int | str = logging_steps if logging_steps is not None else 1
    if logging_strategy != "steps":
        value = "epoch" if logging_strategy == "epoch" else 0
    entries["log.every_steps"] = Entry(value, "--logging_strategy")
    return entries
