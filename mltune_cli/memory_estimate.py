"""How much memory a training needs, from the model's configuration and the recipe. No torch.

What is counted is what autograd keeps for the backward pass of transformers' decoder layers, of
peft's adapters and of `mltune_cli.training.loss`; `docs/doctor.md` says how it was checked.
"""

from dataclasses import dataclass

from mltune_cli.model_shape import ModelShape, Projection
from mltune_cli.recipe.schema import Recipe

_FLOAT = 4
# cuBLAS takes :4096:8, eight buffers of 4 MiB, for the thread of the forward pass and for that of
# the backward pass; cuBLASLt and the attention kernels take about as much again.
_CUDA_WORKSPACE_BYTES = 128 * 2**20
# Python, torch, transformers and peft themselves, in a process that trains on the CPU.
_CPU_PROCESS_BYTES = 600 * 2**20
# What NF4 with double quantisation keeps beside half a byte for a weight: a byte for 64 weights,
# four for 64 * 256. Source: T. Dettmers et al., "QLoRA", 2023.
_NF4_BYTES_PER_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)
_MEBIBYTE = 2**20
# The estimate may be off by so much, and the allocator loses some to fragments.
MARGIN = 0.10
# Tokens whose scores are there at once in `mltune_cli.training.kernels.cross_entropy`.
_LOSS_CHUNK = 2048
# Rows are padded to the longest of their micro-batch, and that to a multiple of this.
_PADDING_MULTIPLE = 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step, by what they are for.

    Attributes:
        weights: of the base, as they are held.
        adapter: trained parameters beside the base, float32, and copies that compute for them.
        gradients: of the micro-batch and the partial sums of the step's tree.
        optimizer: both moments of AdamW, float32.
        activations: what the layers keep for the backward pass.
        logits: the output layer and its loss at their peak.
        workspace: of libraries, and on a CPU of the process itself.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.weights, self.adapter, self.gradients, self.optimizer, self.activations)
        return sum(parts) + self.logits + self.workspace

    def in_words(self) -> str:
        """Return the parts that are at least a hundredth of the whole, largest first."""
        named = {
            "weights": self.weights, "adapter": self.adapter, "gradients": self.gradients,
            "optimizer": self.optimizer, "activations": self.activations, "logits": self.logits,
            "workspace": self.workspace,
        }  # fmt: skip
        shown = sorted(
            ((name, size) for name, size in named.items() if size * 100 >= self.total),
            key=lambda part: -part[1],
        )
        return ", ".join(f"{name} {gibibytes(size)}" for name, size in shown)


def gibibytes(size: float) -> str:
    """Return a number of bytes for a reader: `11.3 GiB`, or `48 MiB` below a tenth of one."""
    if size < 0.1 * 2**30:
        return f"{size / _MEBIBYTE:.0f} MiB"
    return f"{size / 2**30:.1f} GiB"


@dataclass(frozen=True)
class _Case:
    """A recipe on a shape, in the terms of the formulas.

    Attributes:
        width: bytes of a number of the computation.
        autocast: float32 weights, computed in bfloat16.
        tokens: of a micro-batch.
        targets: the projections that have an adapter.
    """

    shape: ModelShape
    recipe: Recipe
    is_cuda: bool
    width: int
    autocast: bool
    tokens: int
    targets: tuple[Projection, ...]

    @property
    def is_full(self) -> bool:
        """Whether the whole model is trained."""
        return self.recipe.adapter.method == "full"

    @property
    def is_fast(self) -> bool:
        """Whether the fast kernels compute it, as far as the recipe tells."""
        model, adapter = self.recipe.model, self.recipe.adapter
        return (
            self.is_cuda
            and self.width < _FLOAT
            and model.attention in ("auto", "varlen")
            and model.compile is not False
            and model.base_precision != "nf4"
            and model.sharding == "none"
            and adapter.method in ("lora", "rslora")
            and adapter.compute_dtype != "float32"
        )

    @property
    def is_masked(self) -> bool:
        """Whether attention gets a mask: packed documents, or a row that is padded."""
        data, rows = self.recipe.data, self.recipe.train.micro_batch_size
        return data.packing is True or rows > 1 or data.max_length % _PADDING_MULTIPLE > 0


def estimate_memory(
    shape: ModelShape,
    recipe: Recipe,
    *,
    is_cuda: bool,
    parameters: int | None = None,
    activation_checkpointing: bool | None = None,
    shards: int = 1,
) -> MemoryEstimate:
    """Estimate the peak of one process, with rows of `data.max_length` tokens.

    Args:
        shape: of the model.
        recipe: checked; `auto` is resolved by `is_cuda`.
        is_cuda: whether it is computed on a GPU.
        parameters: of the whole model, where its files tell exactly.
        activation_checkpointing: instead of what the recipe says; its `auto` is no.
        shards: into how many parts the base is divided, one for each process.
    """
    case = _case(shape, recipe, is_cuda)
    if activation_checkpointing is None:
        activation_checkpointing = recipe.train.activation_checkpointing is True
    count = parameters or shape.parameters
    adapter = 0 if case.is_full else _FLOAT * adapter_parameters(shape, recipe)
    trained = _FLOAT * count if case.is_full else adapter
    held, at_once = _partial_sums(recipe.train.micro_batches_per_step) * trained, 2
    if case.is_full and shards > 1:  # each process keeps its part, summed as it is computed
        trained, held, at_once = trained // shards, 0, 1
    layer = _layer_bytes(case)
    kept = shape.layers * layer
    transient = _transient(case)
    if activation_checkpointing:
        # Of each layer its input stays; one layer at a time is computed again.
        stream = _FLOAT if case.autocast else case.width
        kept = shape.layers * case.tokens * shape.hidden * stream
        transient += layer
    # The largest part of the output layer is over before the layers compute backwards.
    logits = _fast_loss_bytes(case) if case.is_fast else 12 * case.tokens * shape.vocabulary
    # At the end of a backward pass activations are gone and gradients are there, twice: on the
    # parameters, and as the vector that goes into the tree.
    forward = kept + max(logits, transient)
    backward = at_once * trained
    activations, logits, gradients = (
        (kept + max(0, transient - logits), logits, held)
        if forward >= backward
        else (0, 0, held + backward)
    )
    return MemoryEstimate(
        weights=_part(case, _weight_bytes(case, count), shards),
        # With the copies that compute in place of what is trained.
        adapter=adapter + (case.width * (adapter // _FLOAT) if case.is_fast else 0),
        gradients=gradients,
        optimizer=2 * trained,
        activations=activations,
        logits=logits,
        workspace=_CUDA_WORKSPACE_BYTES if is_cuda else _CPU_PROCESS_BYTES,
    )


def recomputes_activations(
    shape: ModelShape,
    recipe: Recipe,
    device_bytes: int | None,
    *,
    parameters: int | None = None,
) -> bool:
    """Tell whether a training recomputes activations: as the recipe says, or by the estimate.

    A base that is divided counts as a whole one: the number of processes must decide no bit.

    Args:
        shape: of the model.
        recipe: checked.
        device_bytes: all that the GPU has, whether free or not, so that who else uses it decides
            no bit; None on a CPU.
        parameters: as of `estimate_memory`.
    """
    asked = recipe.train.activation_checkpointing
    if asked != "auto":
        return asked
    if device_bytes is None:
        return False
    plain = estimate_memory(
        shape, recipe, is_cuda=True, parameters=parameters, activation_checkpointing=False
    )
    return plain.total > device_bytes * (1 - MARGIN)


def kept_activations(shape: ModelShape, recipe: Recipe, *, is_cuda: bool) -> int:
    """Return the bytes that all layers keep of a micro-batch until its backward pass.

    Args:
        shape: of the model.
        recipe: checked; its activation checkpointing is passed over.
        is_cuda: whether it is computed on a GPU.
    """
    return shape.layers * _layer_bytes(_case(shape, recipe, is_cuda))


def _layer_bytes(case: _Case) -> int:
    return case.tokens * _layer_bytes_per_token(case) + _layer_weight_copies(case)


def _case(shape: ModelShape, recipe: Recipe, is_cuda: bool) -> _Case:
    dtype = recipe.model.dtype
    is_half = dtype == "bfloat16" or (dtype == "auto" and is_cuda)
    return _Case(
        shape=shape,
        recipe=recipe,
        is_cuda=is_cuda,
        width=2 if is_half else _FLOAT,
        autocast=is_half and recipe.adapter.method == "full",
        tokens=recipe.train.micro_batch_size * recipe.data.max_length,
        targets=_targets(shape, recipe),
    )


def _targets(shape: ModelShape, recipe: Recipe) -> tuple[Projection, ...]:
    wanted = recipe.adapter.target_modules
    if recipe.adapter.method == "full":
        return ()
    if isinstance(wanted, str):
        return shape.projections
    leaves = {name.rpartition(".")[2] for name in wanted}
    return tuple(projection for projection in shape.projections if projection.name in leaves)


def adapter_parameters(shape: ModelShape, recipe: Recipe) -> int:
    """Return how many parameters the recipe's adapter has; 0 for full fine-tuning."""
    rank = recipe.adapter.rank
    magnitudes = recipe.adapter.method == "dora"
    return shape.layers * sum(
        rank * (p.inputs + p.outputs) + magnitudes * p.outputs for p in _targets(shape, recipe)
    )


def _partial_sums(micro_batches: int) -> int:
    """Return how many sums the step's tree holds while the last micro-batches are computed."""
    return max((number.bit_count() for number in range(micro_batches)), default=0)


def _part(case: _Case, weights: int, shards: int) -> int:
    """Return a process's part of the weights, and what is whole while it is computed with."""
    if shards == 1:
        return weights
    layer = case.shape.layer_weights // case.shape.layers
    embedding = case.shape.vocabulary * case.shape.hidden
    # The layer at work, and the next, which is fetched meanwhile.
    return weights // shards + case.width * (2 * layer + embedding)


def _weight_bytes(case: _Case, parameters: int) -> int:
    if case.is_full:
        return _FLOAT * parameters
    if case.recipe.model.base_precision == "nf4":
        packed = case.shape.layer_weights
        rest = max(0, parameters - packed)
        return round(packed * _NF4_BYTES_PER_WEIGHT) + rest * case.width
    if case.recipe.model.base_precision == "fp8":
        scales = case.shape.layers * sum(p.outputs for p in case.shape.projections)
        packed = case.shape.layer_weights
        return packed + _FLOAT * scales + max(0, parameters - packed) * case.width
    return case.width * parameters


def _layer_bytes_per_token(case: _Case) -> int:
    """Return what a layer keeps of one token for the backward pass."""
    if case.is_fast:
        return _fast_layer_bytes_per_token(case)
    return (
        _norm_bytes(case)
        + _attention_bytes(case)
        + _feed_forward_bytes(case)
        + _trained_input_bytes(case)
        + sum(_adapter_bytes(case, target) for target in case.targets)
    )


def _fast_layer_bytes_per_token(case: _Case) -> int:
    """Return the same of a compiled layer, which computes anew what is cheap to compute."""
    shape, adapter = case.shape, case.recipe.adapter
    reads_hidden = any(target.inputs == shape.hidden for target in case.targets)
    # The inputs of both norms, and what they make of them, which the adapters' gradients need.
    kept = 2 * shape.hidden * (2 if reads_hidden else 1)
    # Queries, keys and values, repeated for every head where torch has no kernel for shared ones,
    # and the result.
    kept += 4 * shape.attention_width
    kept += (3 if shape.is_gated else 1) * shape.intermediate
    kept += adapter.rank * len(case.targets)
    if adapter.dropout > 0:
        kept += sum(target.inputs for target in case.targets)
    # The attention keeps the logarithm of each softmax's sum.
    return case.width * kept + _FLOAT * shape.heads


def _fast_loss_bytes(case: _Case) -> int:
    """Return the scores of some tokens and their gradient, and the layer's input, three times."""
    scores = 2 * case.width * min(case.tokens, _LOSS_CHUNK) * case.shape.vocabulary
    return scores + 3 * case.width * case.tokens * case.shape.hidden


def _norm_bytes(case: _Case) -> int:
    # Both norms keep their input as float32; where their weights are trained, also what the
    # weights are multiplied with.
    return 2 * case.shape.hidden * _FLOAT * (2 if case.is_full else 1)


def _attention_bytes(case: _Case) -> int:
    shape, length = case.shape, case.recipe.data.max_length
    is_eager = case.recipe.model.attention == "eager"
    # Queries, keys, values and the result. With a mask, keys and values are repeated for every
    # head, and each layer keeps the mask as numbers.
    keys = shape.attention_width if case.is_masked or is_eager else shape.key_width
    kept = (2 * shape.attention_width + 2 * keys) * case.width
    if is_eager:
        # The softmax is kept as float32, and in the format that it is multiplied in.
        return kept + shape.heads * length * (_FLOAT + (case.width if case.width < _FLOAT else 0))
    return kept + (length * case.width if case.is_masked else 0)


def _feed_forward_bytes(case: _Case) -> int:
    # Gated: input and output of the activation and the other branch. Else: its input.
    return (3 if case.shape.is_gated else 1) * case.shape.intermediate * case.width


def _trained_input_bytes(case: _Case) -> int:
    """Return what the layers of full fine-tuning keep to compute the gradients of their weights."""
    if not case.is_full:
        return 0
    if not case.autocast:  # one tensor for all that read it; the attention's result is kept anyway
        return (2 * case.shape.hidden + case.shape.intermediate) * case.width
    # Each of them has its own bfloat16 copy.
    readers = [p for p in case.shape.projections if p.inputs == case.shape.hidden]
    return 2 * (sum(p.inputs for p in readers[:-1]) + case.shape.intermediate)


def _adapter_bytes(case: _Case, target: Projection) -> int:
    adapter = case.recipe.adapter
    kept = _FLOAT * adapter.rank
    if adapter.dropout > 0:
        mask = 1 if case.is_cuda else _FLOAT
        kept += (_FLOAT + mask) * target.inputs
    elif case.width < _FLOAT:
        kept += _FLOAT * target.inputs  # its input, as float32
    else:
        sharers = [p for p in case.targets if p.inputs == target.inputs]
        kept += _FLOAT * target.inputs // max(1, min(3, len(sharers)))
    if adapter.method == "dora":
        # What the magnitudes are multiplied with: the base's result, and the adapter's.
        kept += target.outputs * (_FLOAT + (_FLOAT if adapter.dropout > 0 else case.width))
    return kept


def _layer_weight_copies(case: _Case) -> int:
    """Return what a layer keeps whatever the number of tokens: its weights in another format."""
    weights = sum(projection.weights for projection in case.shape.projections)
    if case.autocast:
        return 2 * weights
    if case.recipe.adapter.method == "dora" and case.recipe.adapter.dropout > 0:
        # peft's DoRA multiplies by a float32 copy of the base's weight when there is dropout.
        return _FLOAT * sum(target.weights for target in case.targets) if case.width == 2 else 0
    return 0


def _transient(case: _Case) -> int:
    """Return the largest thing that a layer makes and drops again."""
    widest = max(case.shape.intermediate, case.shape.hidden)
    largest = max((p.weights for p in case.shape.projections), default=0)
    passing = 3 * _FLOAT * case.tokens * widest
    if case.recipe.model.base_precision == "nf4":
        passing += case.width * largest
    if case.recipe.model.base_precision == "fp8":
        # The transposed weight of the backward product, and what it is multiplied with.
        passing += largest + case.tokens * widest
    if case.recipe.adapter.method == "dora":
        # An identity matrix of the inputs, the adapter's product, and their sum with the weight.
        return max([passing, *(_FLOAT * (t.inputs**2 + 4 * t.weights) for t in case.targets)])
    return passing
