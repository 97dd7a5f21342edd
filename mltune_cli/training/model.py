"""The base model and its tokenizer: loaded, checked, identified by content."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mltune_cli.bundled import BUNDLED_PREFIX, bundled_model
from mltune_cli.digests import files_digest
from mltune_cli.errors import RecipeValueError, UsageError, is_machine_failure
from mltune_cli.recipe.schema import ModelSection, Recipe

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_KEY = "model.name_or_path"
# Which kernel computes is chosen when the model is there; until then transformers chooses.
_LOADED_ATTENTION = {"auto": None, "varlen": None}
# What transformers raises for a model that is not one, from a missing file to a cut one.
_LOADING_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError,
    SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class BaseModel:
    """A model before training.

    Attributes:
        name: hub id, bundled name, or the folder's last part; never a path of this machine.
        folder: where its files are.
        revision: the hub commit, where there is one.
        digest: of configuration and weights.
        tokenizer_digest: of the tokenizer's files.
        model: in the dtype it is computed in, on the CPU; a 4-bit one on its GPU.
    """

    name: str
    folder: Path
    revision: str | None
    digest: str
    tokenizer_digest: str
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel


def resolved_model_section(recipe: Recipe) -> ModelSection:
    """Return the model section with `auto` replaced by what this machine's device class decides.

    Raises:
        RecipeValueError: CUDA was asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if recipe.model.device == "cuda" and not has_cuda:
        build = "no CUDA device is visible" if torch.version.cuda else "torch is a CPU build"
        raise RecipeValueError(
            "model.device", f"cuda is asked for, but {build}; set it to cpu or auto"
        )
    if recipe.model.base_precision == "nf4":
        _require_bitsandbytes(has_cuda)
    device = recipe.model.device
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    dtype = recipe.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    if recipe.model.base_precision == "fp8" and device == "cuda":
        _require_float8(dtype)
    return recipe.model.model_copy(update={"device": device, "dtype": dtype})


def _require_bitsandbytes(has_cuda: bool) -> None:
    key = "model.base_precision"
    if not has_cuda:
        raise RecipeValueError(key, "nf4 needs a CUDA device, and none is visible; use dtype")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeValueError(
            key,
            "nf4 needs bitsandbytes, which is not installed; install mltune with its extra qlora",
        )


def _require_float8(dtype: str) -> None:
    key = "model.base_precision"
    # Source: NVIDIA, "CUDA C++ Programming Guide": compute capability 8.9 (Ada) brought FP8.
    if torch.version.cuda is None or torch.cuda.get_device_capability() < (8, 9):
        name = torch.cuda.get_device_name()
        raise RecipeValueError(
            key, f"{name} does not multiply in 8 bits: fp8 needs an NVIDIA GPU of compute "
            "capability 8.9 or newer; use dtype",
        )  # fmt: skip
    if dtype != "bfloat16":
        raise RecipeValueError(
            "model.dtype", "a product in 8 bits (model.base_precision) has a bfloat16 result; "
            "set it to bfloat16",
        )  # fmt: skip


def _quantization(section: ModelSection, device: torch.device) -> dict[str, Any]:
    """Return the loading options of a 4-bit base: NF4 with double quantisation.

    Source: T. Dettmers et al., "QLoRA: Efficient finetuning of quantized LLMs", 2023.
    """
    if section.base_precision != "nf4":
        return {}
    import transformers

    new_config: Any = transformers.BitsAndBytesConfig
    config = new_config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def load_base_model(
    section: ModelSection, full_precision_weights: bool, device: torch.device
) -> BaseModel:
    """Load model and tokenizer from the bundle, a folder or the hub.

    Args:
        section: with device and dtype resolved.
        full_precision_weights: keep weights in float32 whatever the compute dtype (they are the
            optimizer's master copy in full fine-tuning).
        device: where the model will be computed.

    Raises:
        RecipeValueError: there is no such model, it lacks weights, or it lacks a tokenizer.
    """
    given = section.name_or_path or ""
    folder, revision = _folder_of(given, section)
    tokenizer = _load_tokenizer(given, folder, section)
    dtype = torch.float32 if full_precision_weights else getattr(torch, section.dtype)
    try:
        # transformers' hints know only the call that returns the model alone.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=_LOADED_ATTENTION.get(section.attention, section.attention),
            trust_remote_code=section.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **_quantization(section, device),
        )
    except _LOADING_ERRORS as error:
        if is_machine_failure(error):
            raise
        if "scaled_dot_product_attention" in str(error):
            raise RecipeValueError(
                "model.attention",
                f"{given}: this kind of model has no sdpa kernel; set it to eager",
            ) from None
        raise RecipeValueError(_KEY, f"{given}: cannot be loaded: {_first_line(error)}") from None
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise RecipeValueError(
            _KEY,
            f"{given}: holds no weights for {missing[0]} ({len(missing)} tensors in all), "
            "so they would start at random",
        )
    return BaseModel(
        name=given if not Path(given).is_absolute() else Path(given).name,
        folder=folder,
        revision=revision,
        digest=files_digest(folder, _model_files(folder, section.trust_remote_code)),
        tokenizer_digest=files_digest(
            folder, [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
        ),
        tokenizer=tokenizer,
        model=model,
    )


def _model_files(folder: Path, with_code: bool) -> list[Path]:
    """Return what decides a model: its configuration, its weights, and code where it may run."""
    weights = [p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated")]
    code = list(folder.rglob("*.py")) if with_code else []
    return [folder / "config.json", *sorted(weights), *sorted(code)]


def _folder_of(given: str, section: ModelSection) -> tuple[Path, str | None]:
    """Return the folder with the model's files, and the commit when it came from the hub."""
    if given.startswith(BUNDLED_PREFIX):
        try:
            return bundled_model(given), None
        except UsageError as error:
            raise RecipeValueError(_KEY, error.message) from None
    path = Path(given)
    if os.path.isdir(given):  # noqa: PTH112 - unlike Path's, False for a name no file can have
        if (path / "adapter_config.json").is_file():
            raise RecipeValueError(
                _KEY, f"{given}: holds an adapter (adapter_config.json); name its base model"
            )
        if not (path / "config.json").is_file():
            raise RecipeValueError(_KEY, f"{given}: the folder holds no config.json")
        return path, None
    if path.is_absolute():
        raise RecipeValueError(_KEY, f"{given}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(
            snapshot_download(
                given,
                revision=section.revision,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"],
                ignore_patterns=["original/*", "consolidated*", "onnx/*"],
            )
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeValueError(
            _KEY,
            f"{given}: is neither a folder here nor a hub model that can be reached: "
            f"{_first_line(error)}",
        ) from None
    return snapshot, snapshot.name


def _load_tokenizer(given: str, folder: Path, section: ModelSection) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise RecipeValueError(
            _KEY, f"{given}: has no tokenizer (no tokenizer.json or tokenizer.model); add one"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=section.trust_remote_code
        )
    except _LOADING_ERRORS as error:
        if is_machine_failure(error):
            raise
        raise RecipeValueError(
            _KEY, f"{given}: its tokenizer cannot be loaded: {_first_line(error)}"
        ) from None
    if not tokenizer.is_fast:
        raise RecipeValueError(
            _KEY, f"{given}: its tokenizer is a slow one; add a tokenizer.json for the fast one"
        )
    return tokenizer


def require_room(model: Any, max_length: int) -> None:
    """Refuse rows that are longer than the model has positions for.

    Raises:
        RecipeValueError: `data.max_length` is too large.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise RecipeValueError(
            "data.max_length",
            f"{max_length} tokens are more than the model's {positions} positions",
        )


def pad_token_id(base: BaseModel) -> int:
    """Return the id that fills short rows; it is masked everywhere, so any valid id serves."""
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    for candidate in (base.tokenizer.pad_token_id, base.tokenizer.eos_token_id):
        # A padding token that was added to the tokenizer alone has no row in the model.
        if isinstance(candidate, int) and candidate < vocabulary:
            return candidate
    return 0


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
