"""Vision transformers as `transformers` publishes them: ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021), DINOv2 (Oquab et al. 2023) and the
image side of CLIP (Radford et al. 2021). A slot is one patch of normalised pixels, an element one pixel's channels.

Tokens are the class token (DeiT's distillation token next), then the patches, all after the last layer norm. (`transformers` makes CLIP's last norm
part of its pooler: its `pooler_output` is the class token here.)
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt8

from cimrl_jax.errors import UserError
from cimrl_jax.nn import backbone, preprocessor, vision
from cimrl_jax.nn.dense import Dense
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.model_folder import open_checkpoint
from cimrl_jax.nn.patches import Patches
from cimrl_jax.nn.pretrained import Tensor
from cimrl_jax.nn.tuning import Tuning, segments
from cimrl_jax.options import Range, plain
from cimrl_jax.types import Expected, Feature, Slots, SlotSpec

MODEL_TYPES = ("vit", "deit", "dinov2", "clip_vision_model", "clip")
SIZES = ("architecture", "patch_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")


@dataclasses.dataclass(frozen=True)
class Options(Tuning):
    image_size: Annotated[int, Range(low=0)] = 0
    """Side of the pictures in pixels, for data sets that read files; position embeddings are resized to it. 0: what the checkpoint was trained on."""
    architecture: Literal["vit", "deit", "dinov2", "clip_vision_model"] = "vit"
    """Without a checkpoint: whose architecture. This and what follows is otherwise read from the checkpoint."""
    patch_size: Annotated[int, Range(low=1)] = 16
    """Without a checkpoint: side of a patch in pixels; it must divide the image's height and width."""
    hidden_size: Annotated[int, Range(low=1)] = 192
    """Without a checkpoint: width of the tokens."""
    num_layers: Annotated[int, Range(low=1)] = 12
    """Without a checkpoint: blocks."""
    num_heads: Annotated[int, Range(low=1)] = 3
    """Without a checkpoint: attention heads; they must divide hidden_size."""
    intermediate_size: Annotated[int, Range(low=1)] = 768
    """Without a checkpoint: width of the feed-forward part; with dinov2 a multiple of hidden_size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [field.name for field in dataclasses.fields(Options) if field.name in SIZES and getattr(self, field.name) != field.default]
        if self.pretrained and given:
            raise UserError(f"{given[0]}={getattr(self, given[0])} is given beside a checkpoint, whose config.json says it; leave it out")
        if self.image_size and not self.pretrained:
            raise UserError(f"image_size={self.image_size} is given without a checkpoint; set the data set's size instead")


class Embeddings(nn.Module):
    """Slots -> the tokens that the blocks read."""

    architecture: vision.Architecture
    grid: tuple[int, int]
    dtype: Any

    @nn.compact
    def __call__(self, slots: Slots) -> Slots:
        width, lead = self.architecture.shape.width, self.architecture.lead
        bare = "embeddings" in self.architecture.family.norms
        values = base.mask_slots(slots.values, slots.mask).values
        tokens: Any = backbone.Linear(width, self.dtype, use_bias=not bare, name="patch")(values).astype(jnp.float32)
        rows = lead + self.architecture.grid[0] * self.architecture.grid[1]
        init = nn.initializers.truncated_normal(0.02)
        # Shaped as in the files: CLIP's have no axis for the batch.
        special = [name for name in self.architecture.family.embeddings if name != "positions"]
        first = [self.param(name, init, (width,) if bare else (1, 1, width), jnp.float32).reshape(1, width) for name in special]
        positions = self.param("positions", init, (rows, width) if bare else (1, rows, width), jnp.float32).reshape(rows, width)
        first = jnp.broadcast_to(jnp.concatenate(first), (*tokens.shape[:-2], lead, width))
        tokens = jnp.concatenate([first, tokens], -2) + resize(positions, lead, self.architecture.grid, self.grid)
        if bare:
            tokens = backbone.Norm(self.architecture.shape.eps, name="norm")(tokens)
        present = jnp.broadcast_to(slots.mask.any(-1, keepdims=True), (*slots.mask.shape[:-1], lead))
        return Slots(values=tokens.astype(self.dtype), mask=jnp.concatenate([present, slots.mask], -1))


class Backbone(nn.Module):
    architecture: vision.Architecture
    grid: tuple[int, int]
    tuning: Tuning
    runs: tuple[range, ...]
    dtype: Any
    dropout: float

    def setup(self) -> None:
        self.embeddings = Embeddings(self.architecture, self.grid, self.dtype)
        self.blocks = backbone.Blocks(self.architecture.shape, self.tuning, self.runs, self.dtype, self.dropout)
        nn.share_scope(self, self.blocks)
        self.final = backbone.Norm(self.architecture.shape.eps)

    def __call__(self, slots: Slots, *, deterministic: bool) -> Slots:
        tokens = self.embeddings(slots)
        return base.mask_slots(self.final(self.blocks(tokens.values, tokens.mask, deterministic=deterministic)), tokens.mask)


class HfVit(nn.Module):
    of: vision.Architecture
    patches: Patches
    tuning: Tuning
    runs: tuple[range, ...]
    dim: int
    dtype: Any = jnp.float32
    dropout: float = 0.0

    def setup(self) -> None:
        self.backbone = Backbone(self.of, self.patches.grid, self.tuning, self.runs, self.dtype, self.dropout)
        self.inward = Dense(self.dim, self.dtype)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        return self.patches.spec()

    def embed(self, inputs: Num[Array, "*b h w c"], present: Bool[Array, "*b"]) -> Slots:
        return self.patches.embed(inputs, present)

    def features(self, slots: Slots, *, deterministic: bool) -> Slots:
        return self.backbone(slots, deterministic=deterministic)

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        tokens = self.features(slots, deterministic=deterministic)
        return Slots(values=self.inward(tokens.values), mask=tokens.mask)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b h w"]) -> Float[Array, "*b n"]:
        return self.patches.regions(mask)

    def render(self, values: Float[Array, "*b n d"]) -> UInt8[Array, "*b h w c"]:
        return self.patches.render(values)

    @nn.nowrap
    def token_spec(self) -> base.TokenSpec:
        rows, columns = self.patches.grid
        return base.TokenSpec(count=self.of.lead + rows * columns, width=self.of.shape.width, lead=self.of.lead, grid=(rows, columns))

    @nn.nowrap
    def tensors(self) -> tuple[Tensor, ...]:
        return self.of.tensors(self.runs)

    @nn.nowrap
    def architecture(self) -> dict[str, Any]:
        # DINOv2's mask token serves its own training alone.
        own = {"use_mask_token": False} if self.of.model_type == "dinov2" else {}
        said = {name: getattr(self.of, name) for name in self.of.family.defaults}
        return plain({"model_type": self.of.model_type, "architectures": [self.of.family.model], **said, **own})


def resize(positions: Float[Array, "rows w"], lead: int, own: tuple[int, int], grid: tuple[int, int]) -> Float[Array, "tokens w"]:
    """Position embeddings for another grid of patches, those of the `lead` tokens as they are."""
    if own == grid:
        return positions
    places = positions[lead:].reshape(*own, positions.shape[-1])
    by_row, by_column = (jnp.asarray(bicubic(*sizes)) for sizes in zip(own, grid, strict=True))
    places = jnp.einsum("ri,cj,ijw->rcw", by_row, by_column, places, precision="highest")
    return jnp.concatenate([positions[:lead], places.reshape(-1, positions.shape[-1])])


def bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Bicubic interpolation of `old` samples at `new` places as a matrix, as torch does it (a = -0.75, corners not aligned, the border repeated)."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        at = np.floor(place) + tap
        x = np.abs(place - at)
        near, far = (1.25 * x - 2.25) * x**2 + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
        np.add.at(weights, (np.arange(new), np.clip(at, 0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def expected(options: Options) -> Expected:
    """How the checkpoint's pictures were prepared; nothing without one.

    Raises:
      UserError: a checkpoint that is missing, damaged or of another type.
    """
    if not options.pretrained:
        return Expected()
    checkpoint = open_checkpoint(options.pretrained)
    found = vision.read(checkpoint)
    said = preprocessor.pictures(
        checkpoint, channels=found.num_channels, size=vision.pair(found.image_size), mean=found.family.mean, std=found.family.std
    )
    return dataclasses.replace(said, size=(options.image_size, options.image_size)) if options.image_size else said


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> HfVit:
    """An encoder of images `[h, w, c]` uint8 (0..255). `heads` and `mlp_ratio` are of the layers on top.

    Raises:
      UserError: not an image, or one that the patches do not divide; sizes that do not fit; a checkpoint that is missing, damaged or of another type.
    """
    base.expect(feature, encoder="hf_vit", kind="image", rank=3)
    own = vision.read(open_checkpoint(options.pretrained)) if options.pretrained else _make(options, feature)
    height, width, channels = feature.shape
    if channels != own.num_channels:
        raise UserError(f"the checkpoint reads {own.num_channels} channels, the image has {channels}; let the data set make it of as many")
    if height % own.patch or width % own.patch:
        mend = "choose an image_size that is a multiple" if options.pretrained else "choose another patch_size"
        raise UserError(f"patches of {own.patch} pixels do not divide the {height}x{width} image; {mend}")
    return HfVit(own, Patches(feature, own.patch), options, segments(options, own.shape.depth), dim, dtype, dropout)


def _make(options: Options, feature: Feature) -> vision.Architecture:
    height, width, channels = feature.shape
    if height != width and options.architecture in ("dinov2", "clip_vision_model"):
        raise UserError(f"architecture={options.architecture} has positions on a square, the image is {height}x{width}; choose vit")
    if options.architecture == "dinov2" and options.intermediate_size % options.hidden_size:
        raise UserError(f"dinov2 needs an intermediate_size that is a multiple of hidden_size={options.hidden_size}, not {options.intermediate_size}")
    said = {
        "model_type": options.architecture,
        "hidden_size": options.hidden_size,
        "num_hidden_layers": options.num_layers,
        "num_attention_heads": options.num_heads,
        "intermediate_size": options.intermediate_size,
        "mlp_ratio": options.intermediate_size // options.hidden_size,
        "patch_size": options.patch_size,
        "image_size": height if height == width else (height, width),
        "num_channels": channels,
    }
    return vision.Architecture(**{**vision.FAMILIES[options.architecture].defaults, **said})
