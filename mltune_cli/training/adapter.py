"""What is trained: an adapter put on the base model by peft, or the model itself; and its files."""

import difflib
import json
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel

from mltune_cli.errors import NoVerdictError, RecipeValueError
from mltune_cli.randomness import derived_seed
from mltune_cli.recipe.schema import Recipe
from mltune_cli.run_folder import remove
from mltune_cli.training.determinism import seed_all
from mltune_cli.training.model import BaseModel
from mltune_cli.training.sharding import whole, whole_tensors


def prepare_trainable(base: BaseModel, recipe: Recipe) -> PreTrainedModel | PeftModel:
    """Return the network with its trained parameters in float32 and the others frozen.

    The seed is set before the adapter is made: an adapter that starts from an unseeded generator
    is the commonest reason why two runs with one seed differ.

    Raises:
        RecipeValueError: `adapter.target_modules` names modules that the model does not have.
    """
    section = recipe.adapter
    # peft and transformers write this name into the files: an id, never a path of this machine.
    base.model.name_or_path = base.name
    base.model.config._name_or_path = base.name
    if recipe.train.activation_checkpointing is True:
        model: Any = base.model
        try:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": True}
            )
        except ValueError:
            raise RecipeValueError(
                "train.activation_checkpointing",
                f"a {base.model.config.model_type} model cannot do it; set it to false",
            ) from None
    if section.method == "full":
        return base.model
    _require_modules(base.model, section.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        use_rslora=section.method == "rslora",
        use_dora=section.method == "dora",
        base_model_name_or_path=base.name,
        revision=base.revision,
    )
    seed_all(derived_seed(recipe.reproducibility.seed, "adapter"))
    try:
        return get_peft_model(base.model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise RecipeValueError("adapter.target_modules", str(error).splitlines()[0]) from None


def _require_modules(model: torch.nn.Module, names: str | list[str]) -> None:
    """Refuse a name that matches nothing: peft passes over it as long as another one matches."""
    if isinstance(names, str):
        return
    modules = [name for name, _ in model.named_modules()]
    for wanted in names:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in modules):
            leaves = sorted(
                {n.rpartition(".")[2] for n, m in model.named_modules() if not [*m.children()]}
            )
            close = difflib.get_close_matches(wanted, leaves, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(leaves)}"
            raise RecipeValueError(
                "adapter.target_modules", f"the model has no module {wanted}{hint}"
            )


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trained parameters by name, sorted: the order of sums and digests."""
    return {
        name: parameter
        for name, parameter in sorted(model.named_parameters())
        if parameter.requires_grad
    }


@dataclass(frozen=True)
class Trained:
    """What a run trained, whole and on the CPU, and what its files say about it.

    Attributes:
        model: as returned by `prepare_trainable`.
        base: the model before training.
        recipe: resolved.
        tensors: of the adapter, or of the whole model, by the names of their files.
        metadata: further entries of `metadata.json`.
    """

    model: PreTrainedModel | PeftModel
    base: BaseModel
    recipe: Recipe
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def trained_tensors(model: Any, recipe: Recipe, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Return what was trained, by name. Where the model is divided, all processes must ask.

    Args:
        model: as returned by `prepare_trainable`.
        recipe: of the run.
        keep: False in a process that only helps the others, and gets nothing.
    """
    if recipe.adapter.method != "full":
        # Only what is trained is asked for: asking a divided model for its whole state is a
        # meeting of all processes, and the writer alone saves an adapter.
        trained = trained_parameters(model)
        return whole_tensors(
            get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False),
            keep=keep,
        )
    # Tied weights have two names and one tensor; they must stay one, or they are saved twice.
    named = sorted(model.state_dict(keep_vars=True).items())
    made_whole: dict[int, torch.Tensor] = {}
    for tensor in {id(tensor): tensor for _, tensor in named}.values():
        one = whole(tensor.detach())
        if keep:
            made_whole[id(tensor)] = one.cpu()
    return {name: made_whole[id(tensor)] for name, tensor in named} if keep else {}


def save_trained(folder: Path, name: str, trained: Trained) -> Path:
    """Write what was trained into a folder of its own, in peft's or transformers' format.

    Only content goes into these files, no path, time or host, so that equal training gives equal
    bytes.

    Args:
        folder: the run folder.
        name: of the folder in it: `adapter`, `model` or `best`.
        trained: what is written.

    Returns:
        The folder that was written.
    """
    base, recipe, train = trained.base, trained.recipe, trained.recipe.train
    target = folder / f".{name}.part"
    remove(target)
    target.mkdir()
    model: Any = trained.model
    if recipe.adapter.method == "full":
        model.save_pretrained(str(target), state_dict=dict(trained.tensors))
        base.tokenizer.save_pretrained(target)
        saved_keys = sorted(name for name, _ in model.named_parameters())
    else:
        _save_tensors(trained.tensors, target / "adapter_model.safetensors")
        config = model.peft_config["default"].to_dict()
        _write_json(target / "adapter_config.json", config | {"inference_mode": True})
        saved_keys = list(trained.tensors)
    _write_json(
        target / "metadata.json",
        {
            "model_name_or_path": base.name,
            "model_digest": base.digest,
            "max_steps": train.max_steps,
            "batch_size": train.micro_batch_size * train.micro_batches_per_step,
            "seed": recipe.reproducibility.seed,
            "recipe_digest": recipe.bits_digest(),
            **trained.metadata,
            "saved_keys": saved_keys,
        },
    )
    remove(folder / name)
    return target.rename(folder / name)


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # Its own exception around an operating system's error, which is told in the text alone.
        detail = re.search(r'message: "(.*?)"', str(error))
        raise NoVerdictError(
            f"{path}: {detail[1] if detail else error}, so the adapter was not written"
        ) from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    """Spell what JSON has no word for; sets are sorted, their order follows the hash seed."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON spelling")
