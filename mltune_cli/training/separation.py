"""Whether packed documents are kept apart: asked of the model itself, as it will be trained."""

import inspect
from dataclasses import replace

import torch

from mltune_cli.errors import RecipeValueError
from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.loss import summed_loss
from mltune_cli.training.model import BaseModel
from mltune_cli.training.step import TrainingState

_LENGTH = 8


def require_separable_documents(base: BaseModel, state: TrainingState) -> None:
    """Refuse packing on a model whose documents would see each other.

    Another first document must not change what the second one costs; the kernels are those of the
    training.

    Args:
        base: the model as its authors made it.
        state: with a fresh adapter, which changes nothing yet.

    Raises:
        RecipeValueError: the model takes no positions, or attends across documents.
    """
    config = base.model.config
    kind = config.model_type
    if "position_ids" not in inspect.signature(base.model.forward).parameters:
        raise RecipeValueError(
            "data.packing",
            f"a {kind} model takes no positions, so packed documents cannot be told apart; "
            "set it to false",
        )
    vocabulary = int(config.get_text_config().vocab_size)
    first, other, second = (torch.arange(_LENGTH) * factor % vocabulary for factor in (3, 5, 7))
    kernels = state.kernels
    if kernels.flat is not None:
        # The training's rows may be shorter.
        kernels = replace(kernels, flat=replace(kernels.flat, longest=_LENGTH, tokens=None))
    was_training = state.model.training
    state.model.eval()
    # The layers are compiled for the training's rows; two short ones are not worth it.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        costs = [
            float(summed_loss(state.model, kernels, _pair(start, second), state.device))
            for start in (first, (other + 1) % vocabulary)
        ]
    state.model.train(was_training)
    if not abs(costs[0] - costs[1]) <= 1e-3 * abs(costs[0]):
        raise RecipeValueError(
            "data.packing",
            f"this {kind} model lets packed documents see each other; set it to false",
        )


def _pair(first: torch.Tensor, second: torch.Tensor) -> MicroBatch:
    """Return two documents in one row, of which the second counts."""
    ids = torch.cat([first, second])[None]
    labels = ids.clone()
    labels[:, : _LENGTH + 1] = IGNORED_LABEL
    positions = torch.arange(_LENGTH).repeat(2)[None]
    return MicroBatch(ids, labels, positions, torch.ones_like(ids), _LENGTH - 1)
