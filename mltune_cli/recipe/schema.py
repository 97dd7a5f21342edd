"""The recipe: one frozen, typed value that decides every bit of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from mltune_cli.digests import json_digest
from mltune_cli.errors import RecipeValueError

RowFormat = Literal[
    "auto", "text", "prompt_completion", "messages", "alpaca", "sharegpt", "question_answer"
]
PositiveInt = Annotated[int, Field(ge=1, lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
Probability = Annotated[FiniteFloat, Field(ge=0, lt=1)]


class _Section(BaseModel):
    # strict: YAML already has types; `"20"` for a number or `1` for a flag is a mistake to report.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSection(_Section):
    """Which model is trained, and in which number format it computes."""

    name_or_path: str | None = Field(
        None, description="A hub id, a folder, or the bundled `mltune/tiny`."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Compute format; auto: bfloat16 on CUDA, float32 on a CPU."
    )
    base_precision: Literal["dtype", "fp8", "nf4"] = Field(
        "dtype",
        description="How the frozen weights are held; fp8: in 8 bits, multiplied in 8 bits; nf4: "
        "in 4 bits through bitsandbytes (QLoRA).",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is one."
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="fsdp: each process holds a part of the model, whole layers meet as needed.",
    )
    attention: Literal["auto", "varlen", "sdpa", "eager"] = Field(
        "auto",
        description="Attention kernel; varlen: over documents in one row, without a mask. auto: "
        "varlen on CUDA where the model can, else sdpa.",
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="Compile the layers; auto: on CUDA with varlen attention."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you ask."
    )


class DataSection(_Section):
    """Which rows are trained on, and how they become tokens."""

    train: str | None = Field(
        None, description="A file (.jsonl .json .csv .parquet), a folder of them, or a hub id."
    )
    validation: str | None = Field(None, description="Held-out rows, in the same spellings.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub data set.")
    subset: str | None = Field(None, description="Which subset (configuration) of a hub data set.")
    format: RowFormat = Field("auto", description="auto: told by each row's own fields.")
    max_length: Annotated[int, Field(ge=2)] = Field(
        512, description="Tokens a row may have; longer rows are cut and counted."
    )
    packing: Literal["auto"] | bool = Field(
        "auto",
        description="Several documents in one row of max_length tokens, without leakage; auto: "
        "with varlen attention on CUDA.",
    )
    loss_on: Literal["completion", "all"] = Field(
        "completion", description="completion: answers and assistant turns alone."
    )
    chat_template_date: str = Field(
        "2026-01-01",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="What a chat template that asks for the date is told.",
    )
    loader_workers: NonNegativeInt = Field(
        0, description="Processes that build micro-batches ahead; 0: the training process does."
    )


class AdapterSection(_Section):
    """What is trained: a low-rank adapter, or the whole model."""

    method: Literal["lora", "rslora", "dora", "full"] = "lora"
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Probability = 0.0
    compute_dtype: Literal["auto", "float32", "model"] = Field(
        "auto",
        description="Format that the adapter computes in; it is trained in float32 either way. "
        "model: as the base; auto: model on CUDA, float32 on a CPU.",
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Names of the modules that get an adapter."
    )


class TrainSection(_Section):
    """The optimisation: how long, how large a step, how fast."""

    max_steps: PositiveInt | None = None
    epochs: PositiveFloat | None = Field(
        None, description="Sets the number of steps; excludes max_steps. Default: 1."
    )
    micro_batch_size: PositiveInt = Field(4, description="Rows that one forward pass sees.")
    micro_batches_per_step: PositiveInt = Field(
        4, description="Micro-batches whose gradients make one step, on any number of processes."
    )
    learning_rate: PositiveFloat = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = Field(1.0, description="0: no clipping.")
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    loss_kernel: Literal["auto", "chunked", "whole"] = Field(
        "auto",
        description="chunked: the scores of the whole vocabulary never exist for all tokens at "
        "once; auto: chunked on CUDA where the model can, else whole.",
    )
    activation_checkpointing: Literal["auto"] | bool = Field(
        "auto",
        description="Recompute activations in the backward pass: slower, far less memory; auto: "
        "where the estimated peak is more than the GPU has.",
    )


class EvaluateSection(_Section):
    """When the held-out loss is measured."""

    every_steps: NonNegativeInt = Field(
        0, description="0: never; else before the first step, every N steps and after the last."
    )
    keep_best: bool = Field(
        True, description="Keep what was trained at the lowest held-out loss, in best/."
    )
    early_stopping_patience: NonNegativeInt = Field(
        0, description="Stop after so many evaluations without improvement; 0: never."
    )
    early_stopping_threshold: NonNegativeFloat = Field(
        0.0, description="An improvement is a held-out loss lower by more than this, in nats."
    )


class CheckpointSection(_Section):
    """When the state is saved for `--resume`."""

    every_steps: NonNegativeInt = Field(0, description="0: none.")
    keep: PositiveInt = Field(2, description="How many of the newest are kept.")


class LogSection(_Section):
    """How often a line is written to `training_log.jsonl`."""

    every_steps: NonNegativeInt | Literal["epoch"] = Field(
        1, description="0: only the last step; epoch: the last step of each epoch."
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="Experiment trackers that are told of losses as well."
    )


class ReproducibilitySection(_Section):
    """What fixes the bits besides the data and the model."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: PositiveInt = Field(
        1, description="CPU threads; sums part between thread counts, so it is never left open."
    )


class Recipe(_Section):
    """A whole fine-tuning run. Values are read-only; `resolved` fills in what data decides."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    adapter: AdapterSection = AdapterSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    reproducibility: ReproducibilitySection = ReproducibilitySection()
    output_dir: str | None = Field(None, description="Default: the next free runs/<recipe>-NNN.")

    def with_values(self, values: dict[str, Any]) -> Recipe:
        """Return a copy with some dotted keys replaced, e.g. `{"train.max_steps": 20}`."""
        tree = self.model_dump()
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (tree[section] if section else tree)[name] = value
        return Recipe.model_validate(tree)

    def bit_deciding_values(self) -> dict[str, Any]:
        """Return everything in the recipe that decides bits, by dotted key.

        Cadences of evaluation, logging and checkpoints decide none, so changing them does not make
        another recipe, unless evaluations decide when training ends. Model and data are identified
        by their own content digests, not by name.
        """
        tree = self.model_dump(exclude={"output_dir", "checkpoint", "log"})
        del tree["evaluate"]["keep_best"]
        if not self.evaluate.early_stopping_patience:
            del tree["evaluate"]
        for name in ("name_or_path", "revision", "trust_remote_code", "sharding"):
            del tree["model"][name]
        for name in ("train", "validation", "revision", "subset", "loader_workers"):
            del tree["data"][name]
        return {f"{section}.{key}": v for section, keys in tree.items() for key, v in keys.items()}

    def bits_digest(self) -> str:
        """Return the digest of everything in the recipe that decides bits."""
        return json_digest(self.bit_deciding_values())


def check_combinations(recipe: Recipe) -> None:
    """Refuse values that are each valid and together impossible.

    Raises:
        RecipeValueError: names the key to change.
    """
    train = recipe.train
    if recipe.model.name_or_path is None:
        raise RecipeValueError("model.name_or_path", "is missing; name a hub id or a folder")
    if recipe.data.train is None:
        raise RecipeValueError("data.train", "is missing; name a file, a folder or a hub id")
    if train.max_steps is not None and train.epochs is not None:
        raise RecipeValueError(
            "train.epochs", "excludes train.max_steps; keep one and set the other to null"
        )
    if train.max_steps is not None and train.warmup_steps > train.max_steps:
        raise RecipeValueError(
            "train.warmup_steps",
            f"{train.warmup_steps} warm-up steps are more than train.max_steps ({train.max_steps})",
        )
    if recipe.evaluate.every_steps and recipe.data.validation is None:
        raise RecipeValueError(
            "evaluate.every_steps", "needs data.validation, which is missing; set it, or 0 here"
        )
    if recipe.evaluate.early_stopping_patience and not recipe.evaluate.every_steps:
        raise RecipeValueError(
            "evaluate.early_stopping_patience", "needs evaluations; set evaluate.every_steps"
        )
    precision = recipe.model.base_precision
    if precision != "dtype" and recipe.model.sharding != "none":
        raise RecipeValueError(
            "model.sharding", f"{precision} weights are not sharded; set it to none"
        )
    if precision != "dtype" and recipe.adapter.method == "full":
        raise RecipeValueError(
            "model.base_precision",
            f"{precision} weights cannot be trained; use dtype, or an adapter",
        )
    if precision == "fp8" and recipe.adapter.method == "dora":
        raise RecipeValueError(
            "adapter.method", "dora has to read the weights, which fp8 does not let it; use lora"
        )
    if isinstance(recipe.adapter.target_modules, list) and not recipe.adapter.target_modules:
        raise RecipeValueError("adapter.target_modules", "is empty; name modules or all-linear")
