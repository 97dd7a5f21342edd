"""Memory: what the recipe is estimated to need, against what is free."""

from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order, known
from mltune_cli.diagnosis.machine import available_memory_bytes
from mltune_cli.diagnosis.model_files import model_folder, parameter_count, read_config
from mltune_cli.diagnosis.subject import Subject, written
from mltune_cli.memory_estimate import (
    MARGIN,
    MemoryEstimate,
    estimate_memory,
    gibibytes,
    recomputes_activations,
)
from mltune_cli.model_shape import UnknownShapeError, model_shape


def look(subject: Subject) -> Sequence[Finding]:
    """Estimate the recipe's peak and compare it with the device that it will run on."""
    if subject.loaded is None:
        return []
    on_gpu = bool(subject.wants_gpu and subject.torch is not None and subject.torch.gpus)
    folder = model_folder(subject.recipe.model, subject.variables)
    if folder is None:
        return [known("not estimated: the model is not on this machine yet")]
    try:
        shape = model_shape(read_config(folder))
    except (OSError, ValueError, UnknownShapeError) as error:
        return [known(f"not estimated: {error}")]
    count, shards = parameter_count(folder), _shards(subject)
    whole = subject.torch.gpus[0].total_bytes if on_gpu and subject.torch is not None else None
    recomputes = recomputes_activations(shape, subject.recipe, whole, parameters=count)
    estimate, relieved = (
        estimate_memory(
            shape,
            subject.recipe,
            is_cuda=on_gpu,
            parameters=count,
            activation_checkpointing=checkpointing,
            shards=shards,
        )
        for checkpointing in (recomputes, True)
    )
    needs = f"one process{f' of {shards}' if shards > 1 else ''} {_needs(estimate)}"
    free = _free(subject, on_gpu)
    if free is None:
        return [known(f"{needs}; how much is free is not known here")]
    seen = f"{needs}, and {'the GPU' if on_gpu else 'this machine'} has {gibibytes(free)} free"
    return [_judged(subject, estimate, None if recomputes else relieved, free, seen)]


def _shards(subject: Subject) -> int:
    """Return into how many parts the base is divided, with a process on every GPU."""
    facts = subject.torch
    is_divided = subject.recipe.model.sharding == "fsdp" and subject.wants_gpu
    return max(1, len(facts.gpus)) if is_divided and facts is not None else 1


def _free(subject: Subject, on_gpu: bool) -> int | None:
    if not on_gpu:
        return available_memory_bytes()
    return subject.torch.gpus[0].free_bytes if subject.torch is not None else None


def _judged(
    subject: Subject,
    estimate: MemoryEstimate,
    relieved: MemoryEstimate | None,
    free: int,
    seen: str,
) -> Finding:
    """Compare what is needed with what is free.

    Args:
        subject: of the diagnosis.
        estimate: of the recipe.
        relieved: with activations recomputed; None where they are already.
        free: bytes.
        seen: both, in words.
    """
    if estimate.total <= free * (1 - MARGIN):
        return in_order(seen)
    remedy, settings = _remedy(subject, relieved, free)
    make = broken if estimate.total > free else doubtful
    return make(
        seen,
        "training runs out of memory in its first steps",
        f"{remedy}: {written(*settings)}",
        command=subject.trial("memory", *settings),
    )


def _remedy(
    subject: Subject, relieved: MemoryEstimate | None, free: int
) -> tuple[str, tuple[str, ...]]:
    """Return the mildest thing that may help, in words and as settings."""
    train = subject.recipe.train
    if relieved is not None and relieved.total <= free * (1 - MARGIN):
        setting = "train.activation_checkpointing=true"
        remedy = (
            f"recompute activations: with {setting} it is {gibibytes(relieved.total)}; that is "
            "slower, and changes no bit of other recipes"
        )
        return remedy, (setting,)
    if train.micro_batch_size > 1:
        rows = train.micro_batch_size * train.micro_batches_per_step
        return (
            "lower train.micro_batch_size, and raise train.micro_batches_per_step with it",
            ("train.micro_batch_size=1", f"train.micro_batches_per_step={rows}"),
        )
    held = {"full": "", "dora": "hold the base in 4 bits (model.base_precision nf4), "}.get(
        subject.recipe.adapter.method,
        "hold the base in 8 or 4 bits (model.base_precision fp8 or nf4), ",
    )
    half = max(2, subject.recipe.data.max_length // 2)
    return (
        f"divide the base over several GPUs (model.sharding fsdp), {held}or lower data.max_length",
        (f"data.max_length={half}",),
    )


def _needs(estimate: MemoryEstimate) -> str:
    return f"needs about {gibibytes(estimate.total)} at its peak ({estimate.in_words()})"


CHECK = Check("memory", "memory against the recipe's estimate", look, needs_torch=True)
