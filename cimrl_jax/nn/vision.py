"""Published vision transformers: what their config.json says, and what their tensors are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.nn import backbone
from cimrl_jax.nn.model_folder import CONFIG, Checkpoint
from cimrl_jax.nn.pretrained import Tensor
from cimrl_jax.options import Range, make_options


class Family(NamedTuple):
    """What sets one model type apart."""

    model: str
    """The class of `transformers`."""
    defaults: dict[str, Any]
    """Of config.json, which may leave them out."""
    blocks: Mapping[str, str]
    """The children of a block in the files."""
    embeddings: Mapping[str, str]
    """The parameters before the blocks in the files, the patches' map and the norms apart."""
    patch: str
    norms: Mapping[str, str]
    """Before the blocks (CLIP) and after them, in the files."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _children(root: str, *names: str) -> dict[str, str]:
    children = ("query", "key", "value", "out", "attention_norm", "mlp_norm", "widen", "narrow", "attention_scale", "mlp_scale")
    return {child: f"{root}.{{i}}.{name}" for child, name in zip(children, names, strict=False)}


_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16, "num_channels": 3}
_VIT = Family(
    model="ViTModel",
    defaults={**_SIZES, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True},
    blocks=_children(
        "encoder.layer",
        *(f"attention.attention.{part}" for part in ("query", "key", "value")),
        *("attention.output.dense", "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"),
    ),
    embeddings={"class_token": "embeddings.cls_token", "positions": "embeddings.position_embeddings"},
    patch="embeddings.patch_embeddings.projection",
    norms={"final": "layernorm"},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
_DINOV2 = _VIT._replace(
    model="Dinov2Model",
    defaults={**_SIZES, "patch_size": 14, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
    | {"layerscale_value": 1.0, "use_swiglu_ffn": False},
    blocks=_children(
        "encoder.layer",
        *(f"attention.attention.{part}" for part in ("query", "key", "value")),
        *("attention.output.dense", "norm1", "norm2", "mlp.fc1", "mlp.fc2", "layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
_CLIP = Family(
    model="CLIPVisionModel",
    defaults={**_SIZES, "patch_size": 32, "intermediate_size": 3072, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    blocks=_children(
        "encoder.layers",
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
    ),
    embeddings={"class_token": "embeddings.class_embedding", "positions": "embeddings.position_embedding.weight"},
    patch="embeddings.patch_embedding",
    norms={"embeddings": "pre_layrnorm", "final": "post_layernorm"},  # as it is spelt in the files
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
_DEIT = _VIT._replace(model="DeiTModel", embeddings={**_VIT.embeddings, "distillation_token": "embeddings.distillation_token"})
FAMILIES = {"vit": _VIT, "deit": _DEIT, "dinov2": _DINOV2, "clip_vision_model": _CLIP}
ACTIVATIONS: dict[str, backbone.Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


Side = Annotated[int, Range(low=1)] | tuple[Annotated[int, Range(low=1)], Annotated[int, Range(low=1)]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What config.json says, by its names. Raises `UserError` for what cannot be computed."""

    model_type: str
    hidden_size: Annotated[int, Range(low=1)]
    num_hidden_layers: Annotated[int, Range(low=1)]
    num_attention_heads: Annotated[int, Range(low=1)]
    image_size: Side
    patch_size: Side
    num_channels: Annotated[int, Range(low=1)]
    hidden_act: str
    layer_norm_eps: Annotated[float, Range(above=0)]
    intermediate_size: Annotated[int, Range(low=1)] | None = None
    mlp_ratio: Annotated[int | float, Range(low=1)] = 4
    qkv_bias: bool = True
    layerscale_value: float | None = None
    use_swiglu_ffn: bool = False

    def __post_init__(self) -> None:
        height, width = pair(self.patch_size)
        if height != width:
            raise UserError(f"patch_size is {height}x{width}, encoder 'hf_vit' reads square patches; choose another checkpoint")
        if not min(self.grid):
            raise UserError(f"image_size={self.image_size} is less than patch_size={height}; mend one")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act={self.hidden_act!r} is unknown; {nearest(self.hidden_act, ACTIVATIONS)}")
        _ = self.shape  # checks itself

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def shape(self) -> backbone.Shape:
        hidden = self.intermediate_size or int(self.hidden_size * self.mlp_ratio)
        return backbone.Shape(
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            hidden=(hidden * 2 // 3 + 7) // 8 * 8 if self.use_swiglu_ffn else hidden,
            activation="swiglu" if self.use_swiglu_ffn else ACTIVATIONS[self.hidden_act],
            eps=self.layer_norm_eps,
            layer_scale=self.layerscale_value is not None,
            qkv_bias=self.qkv_bias,
        )

    @property
    def patch(self) -> int:
        return pair(self.patch_size)[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that have a position embedding of their own."""
        height, width = pair(self.image_size)
        return height // self.patch, width // self.patch

    @property
    def lead(self) -> int:
        """Tokens before the first patch."""
        return len(self.family.embeddings) - 1

    def tensors(self, runs: tuple[range, ...]) -> tuple[Tensor, ...]:
        """Where the parameters of `nn/encoders/hf_vit.py` stand in the files."""
        family, blocks = self.family, dict(self.family.blocks)
        if self.shape.activation == "swiglu":
            blocks |= {"widen": "encoder.layer.{i}.mlp.weights_in", "narrow": "encoder.layer.{i}.mlp.weights_out"}
        patch = [Tensor(("embeddings", "patch", "kernel"), (f"{family.patch}.weight",), "patches")]
        if "embeddings" not in family.norms:
            patch.append(Tensor(("embeddings", "patch", "bias"), (f"{family.patch}.bias",), "same"))
        paths = {"embeddings": ("embeddings", "norm"), "final": ("final",)}
        leaves = {"scale": "weight", "bias": "bias"}
        norms = [Tensor((*paths[at], leaf), (f"{name}.{word}",), "same") for at, name in family.norms.items() for leaf, word in leaves.items()]
        rest = [Tensor(("embeddings", leaf), (name,), "same") for leaf, name in family.embeddings.items()]
        return (*patch, *rest, *norms, *backbone.tensors(self.shape, runs, blocks))


def read(checkpoint: Checkpoint) -> Architecture:
    """A checkpoint's architecture; that of its image side, if it reads texts too.

    Raises:
      UserError: no vision transformer, or one that cannot be computed.
    """
    kind, config, where = checkpoint.config["model_type"], checkpoint.config, checkpoint.folder / CONFIG
    if kind == "clip":
        kind, config = "clip_vision_model", config.get("vision_config") or {}
    if kind not in FAMILIES:
        raise UserError(f"{where}: model_type is {kind!r}, no vision transformer; leave the option encoder out, it follows from the checkpoint")
    said = {name: config.get(name, default) for name, default in FAMILIES[kind].defaults.items()}
    try:
        return make_options(Architecture, {**said, "model_type": kind}, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, where one number stands for both."""
    return (size, size) if isinstance(size, int) else size
