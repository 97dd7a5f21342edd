"""Compiling before the first step, on rows that no data decides.

Where sizes vary, the compiler writes its kernels for the sizes that it sees first, and how a sum
is split is among what it decides by them. Left to the first micro-batch that happens to come, that
would be another one in each of several processes, and another one after a resumption: one recipe
would come to several results. So it sees the same rows everywhere, and nothing is left to compile
when training begins.

The same rows also show, before anything depends on it, whether what was compiled comes to the same
bits twice: kernels with a race in them have come out of compilers.
"""

from collections.abc import Mapping

import torch

from mltune_cli.errors import NoVerdictError
from mltune_cli.randomness import derived_seed
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.determinism import seed_all
from mltune_cli.training.gradients import GradientFlow, drop_gradients
from mltune_cli.training.loss import summed_loss
from mltune_cli.training.shared_witness import digests_of_own_parts
from mltune_cli.training.step import TrainingState


def compile_ahead(state: TrainingState, recipe: Recipe) -> None:
    """Let the compiler see rows of each kind, as training will; no number is kept.

    Args:
        state: at rest; its generators are seeded anew before every micro-batch, so that it does not
            matter that some draw here.
        recipe: resolved; layers are compiled by it.

    Raises:
        NoVerdictError: the same rows came to other bits the second time.
    """
    # The largest rows first, which training will come nearest to. Then others, for what is told
    # to vary only when it has done so, and as often as it takes a layer to have been called before.
    for documents in (1, 2, 3):
        batch = _rows(recipe, documents)
        # The first time may still use what later times will not.
        state.model.train()
        _bits(state, recipe, batch)
        if recipe.evaluate.every_steps:
            state.model.eval()
            with torch.no_grad():
                summed_loss(state.model, state.kernels, batch, state.device)
    state.model.train()
    _require_equal(_bits(state, recipe, batch), _bits(state, recipe, batch))


def _bits(state: TrainingState, recipe: Recipe, batch: MicroBatch) -> dict[str, str]:
    """Compute a micro-batch from one and the same seed; return digests of loss and gradients."""
    seed_all(derived_seed(recipe.reproducibility.seed, "compile"))
    flow = GradientFlow.of(state.parameters, state.kernels.copies)
    loss = summed_loss(state.model, state.kernels, batch, state.device)
    torch.autograd.backward(loss)
    names = zip(state.parameters, flow.computing, strict=True)
    gradients = {name: tensor.grad for name, tensor in names if tensor.grad is not None}
    drop_gradients(flow.computing)
    return digests_of_own_parts({"the loss": loss.detach(), **gradients})


def _require_equal(once: Mapping[str, str], again: Mapping[str, str]) -> None:
    different = [name for name in once if again.get(name) != once[name]]
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise NoVerdictError(
            f"what torch compiled comes to other bits each time: {different[0]}{more} differed "
            "over the same rows, before the first step; set model.compile to false"
        )


def _rows(recipe: Recipe, documents: int) -> MicroBatch:
    """Return a micro-batch of full rows of one document, or of shorter rows of several.

    Without packing a row is one document, and what is shorter is the row. No document has less
    than two tokens, the second of which is predicted.
    """
    count, longest = recipe.train.micro_batch_size, recipe.data.max_length
    documents = min(documents, longest // 2)
    length = longest // documents
    width = length * documents if recipe.data.packing else length
    ids = torch.zeros(count, width, dtype=torch.int64)
    positions = torch.arange(width).remainder(length).expand(count, width).contiguous()
    # Nobody predicts the first token of a document.
    labels = torch.where(positions == 0, IGNORED_LABEL, ids)
    targets = int((labels != IGNORED_LABEL).sum())
    return MicroBatch(ids, labels, positions, torch.ones_like(ids), targets)
