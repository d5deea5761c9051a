"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019) as `transformers` publishes them. A slot is one word piece's embedding before positions, an
element the whole embedding.

Tokens are the start's marker, the pieces, and the end's marker behind the last valid one; there is no pooler. A masked piece between valid ones keeps
its place: the others' positions stay as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.nn import backbone
from cimrl_jax.nn.dense import Dense
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.model_folder import CONFIG, Checkpoint
from cimrl_jax.nn.pretrained import Tensor, open_checkpoint
from cimrl_jax.nn.tuning import Tuning, segments
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected, Feature, Slots, SlotSpec
from cimrl_jax.vocabulary import checkpoint_ids

MODEL_TYPES = ("bert", "roberta")
MODELS = {"bert": "BertModel", "roberta": "RobertaModel"}
Size = Annotated[int, Range(low=1)]


@dataclasses.dataclass(frozen=True)
class Options(Tuning):
    architecture: Literal["bert", "roberta"] = "bert"
    """Without a checkpoint: whose architecture. This and what follows is otherwise read from the checkpoint."""
    hidden_size: Size = 256
    """Without a checkpoint: width of the tokens."""
    num_layers: Size = 4
    """Without a checkpoint: blocks."""
    num_heads: Size = 4
    """Without a checkpoint: attention heads; they must divide hidden_size."""
    intermediate_size: Size = 1024
    """Without a checkpoint: width of the feed-forward part."""
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"
    """Without a checkpoint: what the feed-forward part is made of; gelu_new is its approximation by tanh."""
    layer_norm_eps: Annotated[float, Range(above=0)] = 1e-12
    """Without a checkpoint: added to the variance in layer norms."""
    max_position_embeddings: Size = 512
    """Without a checkpoint: positions, of which the two markers need two, and RoBERTa's rule one more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = [field for field in dataclasses.fields(Options) if field.name in SIZES]
        given = [field.name for field in own if getattr(self, field.name) != field.default]
        if self.pretrained and given:
            raise UserError(f"{given[0]}={getattr(self, given[0])} is given beside a checkpoint, whose config.json says it; leave it out")


ACTIVATIONS: dict[str, backbone.Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
SIZES = ("architecture", "hidden_size", "num_layers", "num_heads", "intermediate_size", "hidden_act", "layer_norm_eps", "max_position_embeddings")
BLOCKS = {
    **{part: f"encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")},
    "out": "encoder.layer.{i}.attention.output.dense",
    "attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "widen": "encoder.layer.{i}.intermediate.dense",
    "narrow": "encoder.layer.{i}.output.dense",
    "mlp_norm": "encoder.layer.{i}.output.LayerNorm",
}
EMBEDDINGS = {
    ("words",): "word_embeddings.weight",
    ("positions",): "position_embeddings.weight",
    ("types",): "token_type_embeddings.weight",
    ("norm", "scale"): "LayerNorm.weight",
    ("norm", "bias"): "LayerNorm.bias",
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What config.json says, by its names and with its defaults. Raises `UserError` for what cannot be computed."""

    model_type: str
    vocab_size: Size
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: Annotated[float, Range(above=0)] = 1e-12
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    pad_token_id: Annotated[int, Range(low=0)] = 0
    position_embedding_type: str = "absolute"
    is_decoder: bool = False

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act={self.hidden_act!r} is unknown; {nearest(self.hidden_act, ACTIVATIONS)}")
        if self.position_embedding_type != "absolute" or self.is_decoder:
            said = "is_decoder=true" if self.is_decoder else f"position_embedding_type={self.position_embedding_type!r}"
            raise UserError(f"{said} is not what encoder 'hf_bert' computes; choose a checkpoint with absolute positions that reads both ways")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size={self.hidden_size} is no multiple of the {self.num_attention_heads} attention heads; mend one")
        if self.length < 1:
            raise UserError(f"max_position_embeddings={self.max_position_embeddings} leaves no place for a word; it must be {3 + self.first} or more")

    @property
    def shape(self) -> backbone.Shape:
        return backbone.Shape(
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            hidden=self.intermediate_size,
            activation=ACTIVATIONS[self.hidden_act],
            eps=self.layer_norm_eps,
            norm="post",
        )

    @property
    def first(self) -> int:
        """The position of a text's first token: RoBERTa's begin behind that of padding."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def length(self) -> int:
        """Most ids that a text can have, the markers left out."""
        return self.max_position_embeddings - self.first - 2


class Embeddings(nn.Module):
    """Ids -> slots -> the tokens that the blocks read."""

    of: Architecture
    markers: tuple[int, int]
    """The rows of a text's beginning and end."""

    def setup(self) -> None:
        width, init = self.of.hidden_size, nn.initializers.normal(0.02)
        self.words = self.param("words", init, (self.of.vocab_size, width), jnp.float32)
        self.positions = self.param("positions", init, (self.of.max_position_embeddings, width), jnp.float32)
        self.types = self.param("types", init, (self.of.type_vocab_size, width), jnp.float32)
        self.norm = backbone.Norm(self.of.layer_norm_eps)

    def look_up(self, rows: Int[Array | np.ndarray, "*b"]) -> Float[Array, "*b w"]:
        return self.words[rows]

    def __call__(self, slots: Slots) -> Slots:
        values, mask = base.mask_slots(slots.values, slots.mask).values, slots.mask
        *lead, n, width = values.shape
        first, last = self.words[jnp.asarray(self.markers)]
        behind = jnp.max(jnp.where(mask, jnp.arange(2, n + 2), 0), -1, keepdims=True)  # [*b, 1]; 0 where there is no text
        end = jnp.arange(n + 2) == jnp.where(behind > 0, behind, -1)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (*lead, 1, width)), values, jnp.zeros((*lead, 1, width))], -2)
        tokens = jnp.where(end[..., None], last, tokens) + self.positions[self.of.first : self.of.first + n + 2] + self.types[0]
        edge = jnp.zeros((*lead, 1), bool)
        return Slots(values=self.norm(tokens), mask=jnp.concatenate([behind > 0, mask, edge], -1) | end)


class Backbone(nn.Module):
    of: Architecture
    markers: tuple[int, int]
    tuning: Tuning
    runs: tuple[range, ...]
    dtype: Any
    dropout: float

    def setup(self) -> None:
        self.embeddings = Embeddings(self.of, self.markers)
        self.blocks = backbone.Blocks(self.of.shape, self.tuning, self.runs, self.dtype, self.dropout)
        nn.share_scope(self, self.blocks)
        self.drop = nn.Dropout(self.dropout)

    def look_up(self, rows: Int[Array | np.ndarray, "*b"]) -> Float[Array, "*b w"]:
        return self.embeddings.look_up(rows)

    def __call__(self, slots: Slots, *, deterministic: bool) -> Slots:
        tokens = self.embeddings(slots)
        values = self.drop(tokens.values, deterministic=deterministic or not self.dropout)
        values = self.blocks(values, tokens.mask, deterministic=deterministic)
        return base.mask_slots(values.astype(jnp.float32), tokens.mask)


class HfBert(nn.Module):
    of: Architecture
    feature: Feature
    tuning: Options
    runs: tuple[range, ...]
    dim: int
    dtype: Any = jnp.float32
    dropout: float = 0.0

    def setup(self) -> None:
        # Without a checkpoint's tokeniser the markers' rows are behind those of the words.
        begin, end = self.feature.special[2:] or (len(self.feature.vocabulary), len(self.feature.vocabulary) + 1)
        self.backbone = Backbone(self.of, (begin, end), self.tuning, self.runs, self.dtype, self.dropout)
        self.inward = Dense(self.dim, self.dtype)

    @property
    def rows(self) -> Int[np.ndarray, " v"]:
        """The embedding's row of each id: the table stays in the checkpoint's order."""
        size = len(self.feature.vocabulary)
        return checkpoint_ids(size, *self.feature.special[:2]) if self.feature.special else np.arange(size, dtype=np.int32)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        width = self.of.hidden_size
        return SlotSpec(kind=self.feature.kind, count=self.feature.shape[0], width=width, element=width)

    def embed(self, inputs: Int[Array, "*b l"], present: Bool[Array, "*b"]) -> Slots:
        ids = inputs[..., : self.feature.shape[0]]
        return base.mask_slots(self.backbone.look_up(jnp.asarray(self.rows)[ids]), (ids != 0) & present[..., None])

    def features(self, slots: Slots, *, deterministic: bool) -> Slots:
        return self.backbone(slots, deterministic=deterministic)

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        tokens = self.features(slots, deterministic=deterministic)
        return Slots(values=self.inward(tokens.values), mask=tokens.mask)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b l"]) -> Float[Array, "*b n"]:
        return mask[..., : self.feature.shape[0]].astype(jnp.float32)

    def render(self, values: Float[Array, "*b n d"]) -> Int[Array, "*b n"]:
        words = self.backbone.look_up(self.rows)
        # argmin |v - w|^2 over words, without the [*b, n, words, d] of differences.
        distance = jnp.sum(words**2, axis=-1) - 2 * values @ words.T
        return jnp.argmin(distance, axis=-1).astype(jnp.int32)

    @nn.nowrap
    def token_spec(self) -> base.TokenSpec:
        return base.TokenSpec(count=self.feature.shape[0] + 2, width=self.of.hidden_size, lead=1, grid=None)

    @nn.nowrap
    def tensors(self) -> tuple[Tensor, ...]:
        own = (Tensor(("embeddings", *path), (f"embeddings.{name}",), "same") for path, name in EMBEDDINGS.items())
        return (*own, *backbone.tensors(self.of.shape, self.runs, BLOCKS))

    @nn.nowrap
    def architecture(self) -> dict[str, Any]:
        return {"architectures": [MODELS[self.of.model_type]], **dataclasses.asdict(self.of)}


def read(checkpoint: Checkpoint) -> Architecture:
    """A checkpoint's architecture.

    Raises:
      UserError: neither BERT nor RoBERTa, or one that cannot be computed.
    """
    kind, where = checkpoint.config["model_type"], checkpoint.folder / CONFIG
    if kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type is {kind!r}, expected bert or roberta; leave the option encoder out, it follows from the checkpoint")
    said = {field.name: checkpoint.config[field.name] for field in dataclasses.fields(Architecture) if field.name in checkpoint.config}
    try:
        return make_options(Architecture, {"pad_token_id": int(kind == "roberta"), **said}, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def expected(options: Options) -> Expected:
    """The checkpoint's tokeniser, and how many ids the encoder can read; nothing without one.

    Raises:
      UserError: a checkpoint that is missing, damaged or of another type.
    """
    if not options.pretrained:
        return Expected()
    checkpoint = open_checkpoint(options.pretrained)
    return Expected(tokeniser=str(checkpoint.folder), length=read(checkpoint).length)


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> HfBert:
    """An encoder of ids `[length]` int32, 0 for padding. `heads` and `mlp_ratio` are of the layers on top.

    Raises:
      UserError: not a text, one that the checkpoint's tokeniser did not make or that is too long; a checkpoint that is missing, damaged or of another
        type.
    """
    base.expect(feature, encoder="hf_bert", kind="text", rank=1)
    words = len(feature.vocabulary)
    if not words:
        raise UserError("encoder 'hf_bert' needs the feature's vocabulary, which is empty; mend the data set's Feature")
    own = read(open_checkpoint(options.pretrained)) if options.pretrained else _make(options, feature)
    if options.pretrained and not feature.special:
        raise UserError(
            f"{options.pretrained} reads the pieces of words that its tokeniser makes, but these ids stand for the data set's own words; "
            "choose a data set that takes a checkpoint's tokeniser, or leave pretrained out"
        )
    if own.vocab_size < words:
        raise UserError(f"the tokeniser makes {words} different ids, but the embeddings have {own.vocab_size} rows; take both from one checkpoint")
    if feature.shape[0] > own.length:
        raise UserError(f"texts have {feature.shape[0]} ids, but there are positions for {own.length}; set a smaller length in the data set")
    return HfBert(own, feature, options, segments(options, own.num_hidden_layers), dim, dtype, dropout)


def _make(options: Options, feature: Feature) -> Architecture:
    return Architecture(
        model_type=options.architecture,
        vocab_size=len(feature.vocabulary) + (0 if feature.special else 2),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_heads,
        intermediate_size=options.intermediate_size,
        hidden_act=options.hidden_act,
        layer_norm_eps=options.layer_norm_eps,
        max_position_embeddings=options.max_position_embeddings,
        pad_token_id=feature.special[0] if feature.special else 0,
    )
