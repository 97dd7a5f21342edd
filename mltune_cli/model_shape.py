"""What of a decoder model's configuration decides memory: its sizes and its linear layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UnknownShapeError(Exception):
    """The configuration is not of a kind whose memory is known here; the message says why."""


@dataclass(frozen=True)
class Projection:
    """A linear layer of every decoder layer.

    Attributes:
        name: of the module, as `adapter.target_modules` would call it.
        inputs: features that it reads.
        outputs: features that it writes.
    """

    name: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """What of a decoder model's configuration decides memory.

    Attributes:
        heads: attention heads; `attention_width` is what they read together.
        key_width: of keys, and of values; less than `attention_width` where heads share them.
        projections: of one layer.
        is_gated: whether the feed-forward part multiplies two branches.
        is_tied: whether input and output embeddings are one matrix.
    """

    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    attention_width: int
    key_width: int
    projections: tuple[Projection, ...]
    is_gated: bool
    is_tied: bool

    @property
    def layer_weights(self) -> int:
        """Weights of all linear layers of all decoder layers."""
        return self.layers * sum(projection.weights for projection in self.projections)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; biases, which hardly count, are left out."""
        embeddings = self.vocabulary * self.hidden * (1 if self.is_tied else 2)
        norms = (2 * self.layers + 1) * self.hidden
        return embeddings + self.layer_weights + norms


# Names that older kinds of model have for the same thing.
_OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner", "ffn_dim"),
}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Kinds whose feed-forward part is two matrices with an activation between.
_UNGATED = {
    "gpt2": ("c_attn", "c_proj", "c_fc", "c_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "opt": (None, "out_proj", "fc1", "fc2"),
    "phi": (None, "dense", "fc1", "fc2"),
    "starcoder2": (None, "o_proj", "c_fc", "c_proj"),
    "nemotron": (None, "o_proj", "up_proj", "down_proj"),
}
# Kinds that compute queries, keys and values, or both branches, with one matrix.
_FUSED_QUERIES = {"phi3"}
_FUSED_BRANCHES = {"phi3", "glm", "glm4"}


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read a model's `config.json`.

    Args:
        config: the parsed file; a model with several parts is read at its `text_config`.

    Raises:
        UnknownShapeError: a mixture of experts, a model that is not a decoder, or a number that is
            missing.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {**text, "tie_word_embeddings": _tied(config, _tied(text, True))}
    kind = str(config.get("model_type", "unknown"))
    if config.get("is_encoder_decoder"):
        raise UnknownShapeError(f"a {kind} model is not a decoder alone")
    if any(_whole(config.get(name)) for name in _EXPERTS):
        raise UnknownShapeError(f"a {kind} model is a mixture of experts")
    hidden, layers = _number(config, "hidden_size"), _number(config, "num_hidden_layers")
    heads = _number(config, "num_attention_heads")
    is_gated = kind not in _UNGATED
    if is_gated and _whole(config.get("intermediate_size")) == 0:
        raise UnknownShapeError(f"a {kind} model's configuration has no intermediate_size")
    intermediate = _number(config, "intermediate_size", 4 * hidden)
    width = heads * (_whole(config.get("head_dim")) or hidden // heads)
    keys = width // heads * (_whole(config.get("num_key_value_heads")) or heads)
    return ModelShape(
        vocabulary=_number(config, "vocab_size"),
        hidden=hidden,
        layers=layers,
        intermediate=intermediate,
        heads=heads,
        attention_width=width,
        key_width=keys,
        projections=_projections(kind, hidden, intermediate, width, keys),
        is_gated=is_gated,
        is_tied=_tied(config, kind in ("gpt2", "opt", "gemma", "gemma2", "gemma3_text")),
    )


def _tied(config: Mapping[str, Any], default: bool) -> bool:
    value = config.get("tie_word_embeddings")
    return value if isinstance(value, bool) else default


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _number(config: Mapping[str, Any], name: str, default: int = 0) -> int:
    for spelling in (name, *_OTHER_NAMES.get(name, ())):
        if found := _whole(config.get(spelling)):
            return found
    if default:
        return default
    raise UnknownShapeError(f"the model's configuration has no {name}")


def _projections(
    kind: str, hidden: int, intermediate: int, queries: int, keys: int
) -> tuple[Projection, ...]:
    fused, output, up, down = _UNGATED.get(kind, (None, "o_proj", "up_proj", "down_proj"))
    if kind in _FUSED_QUERIES:
        fused = "qkv_proj"
    if fused is not None:
        attention = [Projection(fused, hidden, queries + 2 * keys)]
    else:
        widths = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        attention = [Projection(name, hidden, width) for name, width in widths.items()]
    attention.append(Projection(output, queries, hidden))
    if kind in _UNGATED:
        branches = [Projection(up, hidden, intermediate)]
    elif kind in _FUSED_BRANCHES:
        branches = [Projection("gate_up_proj", hidden, 2 * intermediate)]
    else:
        branches = [Projection(name, hidden, intermediate) for name in ("gate_proj", up)]
    return (*attention, *branches, Projection(down, intermediate, hidden))
