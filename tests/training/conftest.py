"""Training inside the test process, on the bundled model."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mltune_cli.launching.events import EventPipe
from mltune_cli.launching.job import TrainingJob
from mltune_cli.recipe.layers import load_recipe
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.determinism import settle
from mltune_cli.training.loop import Surroundings, train


@pytest.fixture(autouse=True)
def _deterministic_process() -> Iterator[None]:
    """Give each test the settings of a worker, and the rest of the session its own back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _settled_once() -> None:
    # The number of inter-op threads can be set once in a process, before any work.
    with contextlib.suppress(RuntimeError):
        settle(1)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("MLTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "training-cache"))


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path

    def lines(self, name: str) -> list[str]:
        """Return the lines of a log."""
        return (self.folder / name).read_text().splitlines()


def smoke_recipe(**values: Any) -> Recipe:
    """Return the smoke recipe, three steps long, with `section__key=value` replaced."""
    short = {"train.max_steps": 3, "train.warmup_steps": 0, "evaluate.every_steps": 0}
    given = {name.replace("__", "."): value for name, value in values.items()}
    return load_recipe(None, {}).recipe.with_values(short | given)


@pytest.fixture(name="smoke_recipe")
def _smoke_recipe() -> Callable[..., Recipe]:
    return smoke_recipe


@pytest.fixture
def run_training(tmp_path: Path) -> Callable[..., Trained]:
    """Train in this process; called as `run_training("name", train__max_steps=2)`."""

    def run(name: str, **values: Any) -> Trained:
        recipe = smoke_recipe(output_dir=str(tmp_path / name), **values)
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            job = TrainingJob(
                recipe=recipe, origins={}, recipe_name="test", runs_folder=str(tmp_path)
            )
            train(job, Surroundings(EventPipe(descriptor)))
        finally:
            os.close(descriptor)
        return Trained(tmp_path / name)

    return run


# The loss falls, falls, rises, falls a little: 3.15 2.86 2.76 2.97 2.88 ...
UNSTEADY = {
    "train__max_steps": 6, "train__schedule": "constant", "train__learning_rate": 0.016,
    "evaluate__every_steps": 1, "checkpoint__every_steps": 1, "checkpoint__keep": 20,
}  # fmt: skip


@pytest.fixture(name="unsteady")
def _unsteady() -> dict[str, Any]:
    """Values of a recipe whose held-out loss does not only fall."""
    return dict(UNSTEADY)


@pytest.fixture
def copied(
    run_training: Callable[..., Trained], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Callable[..., Path]:
    """Return a copy of a run that is trained once: `copied("name", evaluate__...=...)`."""

    def copy(name: str, **values: Any) -> Path:
        kept = tmp_path_factory.getbasetemp() / f"unsteady-{name}"
        if not kept.exists():
            shutil.move(run_training(name, **UNSTEADY, **values).folder, kept)
        return Path(shutil.copytree(kept, tmp_path / f"copy-of-{name}"))

    return copy


@pytest.fixture
def to_the_end(copied: Callable[..., Path]) -> Path:
    """A run of all 6 steps with a checkpoint after each."""
    return copied("whole")
