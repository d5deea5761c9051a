"""ResNets (He et al. 2016) as `transformers`, torchvision and timm publish them. A slot is one patch of normalised pixels, an element one pixel.

The patches are folded back into a picture first, so that they need not be what a cell of the last feature map sees. Those cells are the tokens. Batch
norms are frozen: a factor and a shift per channel, in which their statistics stand folded; a batch never changes them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, UInt8

from cimrl_jax.errors import UserError
from cimrl_jax.nn import preprocessor
from cimrl_jax.nn.dense import Dense
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.model_folder import Checkpoint, open_checkpoint
from cimrl_jax.nn.patches import Patches
from cimrl_jax.nn.pretrained import Tensor
from cimrl_jax.nn.torchvision import MODEL_TYPE
from cimrl_jax.nn.tuning import Tuning, segments
from cimrl_jax.options import Range
from cimrl_jax.types import Expected, Feature, Slots, SlotSpec

MODEL_TYPES = ("resnet", MODEL_TYPE)
MEAN, STD, SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224  # ImageNet's
ACTIVATIONS = {"relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False), "silu": jax.nn.silu}
REDUCTION = 4
"""How many times narrower a bottleneck is than what it puts out."""
Natural = Annotated[int, Range(low=1)]


@dataclasses.dataclass(frozen=True)
class Options(Tuning):
    """Freezing and layer_decay count stages as blocks."""

    patch: Annotated[int, Range(low=0)] = 0
    """Side of a slot in pixels; it must divide the image's height and width. 0: the largest up to 32 that does."""
    image_size: Annotated[int, Range(low=0)] = 0
    """Side of the pictures in pixels, for data sets that read files. 0: the side the checkpoint was trained on."""
    depth: tuple[Natural, ...] = (2, 2, 2, 2)
    """Without a checkpoint: layers of each stage. This and what follows is otherwise read from the checkpoint."""
    hidden_sizes: tuple[Natural, ...] = (64, 128, 256, 512)
    """Without a checkpoint: channels that each stage puts out."""
    embedding_size: Natural = 64
    """Without a checkpoint: channels of the convolution before the stages."""
    layer_type: Literal["basic", "bottleneck"] = "basic"
    """Without a checkpoint: layers of two 3x3 convolutions, or of a 1x1, a 3x3 and a 1x1 (ResNet-50 and up)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = [field for field in dataclasses.fields(Options) if field.name in ("depth", "hidden_sizes", "embedding_size", "layer_type")]
        given = [field.name for field in own if getattr(self, field.name) != field.default]
        if self.pretrained and given:
            raise UserError(f"{given[0]}={getattr(self, given[0])} is given beside a checkpoint, whose config.json says it; leave it out")
        if self.image_size and not self.pretrained:
            raise UserError(f"image_size={self.image_size} is given without a checkpoint; set the data set's size instead")
        if self.lora_rank:
            raise UserError(
                f"lora_rank={self.lora_rank} is for transformers' linear maps; leave it out for a ResNet, and freeze its first stages instead"
            )
        if self.attention != "auto":
            raise UserError(f"attention={self.attention} is for transformers, a ResNet has none; leave it out")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """config.json, by its own names."""

    num_channels: Natural = 3
    embedding_size: Natural = 64
    hidden_sizes: tuple[Natural, ...] = (256, 512, 1024, 2048)
    depths: tuple[Natural, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: Literal["relu", "gelu", "silu"] = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.hidden_sizes):
            raise UserError(f"{len(self.depths)} stages by their depths, {len(self.hidden_sizes)} by hidden_sizes; give both for each stage")
        if self.layer_type == "bottleneck" and min(self.hidden_sizes) < REDUCTION:
            raise UserError(f"hidden_sizes has {min(self.hidden_sizes)}, a bottleneck needs {REDUCTION} at least; widen it or take layer_type=basic")

    def stride(self, stage: int) -> int:
        return 2 if stage or self.downsample_in_first_stage else 1

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last feature map."""
        halvings = 2 + sum(self.stride(stage) == 2 for stage in range(len(self.depths)))
        return -(-height // 2**halvings), -(-width // 2**halvings)

    def plan(self, stage: int, layer: int) -> tuple[tuple[int, int, int], ...]:
        """A layer's convolutions: side, stride, channels."""
        stride, out = self.stride(stage) if not layer else 1, self.hidden_sizes[stage]
        if self.layer_type == "basic":
            return (3, stride, out), (3, 1, out)
        first, second = (stride, 1) if self.downsample_in_bottleneck else (1, stride)
        return (1, first, out // REDUCTION), (3, second, out // REDUCTION), (1, 1, out)

    def shortcut(self, stage: int, layer: int) -> bool:
        """Whether what goes past a layer is convolved, to fit what comes out of it."""
        before = self.hidden_sizes[stage - 1] if stage else self.embedding_size
        return not layer and (self.stride(stage) != 1 or before != self.hidden_sizes[stage])


class Convolution(nn.Module):
    """A convolution, padded by half its side, with the frozen batch norm after it."""

    features: int
    side: int
    stride: int
    stacked: bool
    """Whether the parameters have the leading axis of a segment's."""
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        lead = (1,) * self.stacked
        # As torch's ResNets start: by what comes out.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal", batch_axis=(0,) if lead else ())
        kernel = self.param("kernel", init, (*lead, self.side, self.side, x.shape[-1], self.features), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (*lead, self.features), jnp.float32).reshape(-1)
        shift = self.param("shift", nn.initializers.zeros, (*lead, self.features), jnp.float32).reshape(-1)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.reshape(kernel.shape[-4:]).astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.side // 2, self.side // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y * scale.astype(self.dtype) + shift.astype(self.dtype)


class Layer(nn.Module):
    """`act(f(x) + shortcut(x))`."""

    of: Architecture
    stage: int
    number: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        y = x
        plan = self.of.plan(self.stage, self.number)
        for i, (side, stride, features) in enumerate(plan):
            y = Convolution(features, side, stride, True, self.dtype, name=f"convolution_{i}")(y)
            y = jax.nn.relu(y) if i + 1 < len(plan) else y  # in `transformers`, hidden_act is not of what lies within a layer
        if self.of.shortcut(self.stage, self.number):
            x = Convolution(self.of.hidden_sizes[self.stage], 1, self.of.stride(self.stage), True, self.dtype, name="shortcut")(x)
        return ACTIVATIONS[self.of.hidden_act](y + x)


class Stage(nn.Module):
    of: Architecture
    number: int
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        layer: Any = nn.remat(Layer) if self.remat else Layer
        for i in range(self.of.depths[self.number]):
            x = layer(self.of, self.number, i, self.dtype, name=f"layer_{i}")(x)
        return x


class Backbone(nn.Module):
    """Pictures -> the last feature map."""

    of: Architecture
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b y x o"]:
        x = Convolution(self.of.embedding_size, 7, 2, False, self.dtype, name="embeddings")(pixels)
        x = nn.max_pool(ACTIVATIONS[self.of.hidden_act](x), (3, 3), (2, 2), cast(Any, [(1, 1), (1, 1)]))
        for i in range(len(self.of.depths)):
            x = Stage(self.of, i, self.remat, self.dtype, name=f"segment_{i}")(x)
        return x


class HfResnet(nn.Module):
    of: Architecture
    patches: Patches
    tuning: Tuning
    runs: tuple[range, ...]
    """One stage each."""
    dim: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.backbone = Backbone(self.of, self.tuning.remat, self.dtype)
        self.inward = Dense(self.dim, self.dtype)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        return self.patches.spec()

    @nn.nowrap
    def token_spec(self) -> base.TokenSpec:
        height, width, _ = self.patches.feature.shape
        grid = self.of.grid(height, width)
        return base.TokenSpec(count=math.prod(grid), width=self.of.hidden_sizes[-1], lead=0, grid=grid)

    def embed(self, inputs: Num[Array, "*b h w c"], present: Bool[Array, "*b"]) -> Slots:
        return self.patches.embed(inputs, present)

    def features(self, slots: Slots, *, deterministic: bool) -> Slots:
        """A masked slot is a patch of the mean colour; the tokens are valid where any slot is."""
        values, spec = base.mask_slots(slots.values, slots.mask).values, self.token_spec()
        (rows, columns), (height, width, channels), lead = self.patches.grid, self.patches.feature.shape, values.shape[:-2]
        pixels = values.reshape(-1, rows, columns, height // rows, width // columns, channels).swapaxes(2, 3)
        cells = self.backbone(pixels.reshape(-1, height, width, channels)).astype(jnp.float32)
        return base.mask_slots(cells.reshape(*lead, spec.count, spec.width), base.everywhere(slots.mask.any(-1), spec.count))

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        tokens = self.features(slots, deterministic=deterministic)
        return Slots(values=self.inward(tokens.values), mask=tokens.mask)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b h w"]) -> Float[Array, "*b n"]:
        return self.patches.regions(mask)

    def render(self, values: Float[Array, "*b n d"]) -> UInt8[Array, "*b h w c"]:
        return self.patches.render(values)

    @nn.nowrap
    def tensors(self) -> tuple[Tensor, ...]:
        found = list(_records(("embeddings",), "embedder.embedder"))
        for stage, depth in enumerate(self.of.depths):
            for layer in range(depth):
                path, name = (f"segment_{stage}", f"layer_{layer}"), f"encoder.stages.{stage}.layers.{layer}"
                for i in range(len(self.of.plan(stage, layer))):
                    found += _records((*path, f"convolution_{i}"), f"{name}.layer.{i}")
                if self.of.shortcut(stage, layer):
                    found += _records((*path, "shortcut"), f"{name}.shortcut")
        return tuple(found)

    @nn.nowrap
    def architecture(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.of), "model_type": "resnet", "architectures": ["ResNetModel"]}


def _records(path: tuple[str, ...], name: str) -> tuple[Tensor, ...]:
    norm = (f"{name}.normalization",)
    return (
        Tensor((*path, "kernel"), (f"{name}.convolution.weight",), "convolution"),
        Tensor((*path, "scale"), norm, "scale"),
        Tensor((*path, "shift"), norm, "shift"),
    )


def expected(options: Options) -> Expected:
    """How the checkpoint's pictures were prepared (ImageNet's mean, deviation and 224 pixels where it does not say); nothing without one.

    Raises:
      UserError: a checkpoint that is missing, damaged or of another type.
    """
    if not options.pretrained:
        return Expected()
    checkpoint = open_checkpoint(options.pretrained)
    channels = _read(checkpoint).num_channels
    mean, std = (MEAN, STD) if channels == len(MEAN) else ((0.5,) * channels, (0.5,) * channels)
    said = preprocessor.pictures(checkpoint, channels=channels, size=(SIZE, SIZE), mean=mean, std=std)
    return dataclasses.replace(said, size=(options.image_size, options.image_size)) if options.image_size else said


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> HfResnet:
    """An encoder of images `[h, w, c]` uint8 (0..255). `heads`, `mlp_ratio` and `dropout` are of the layers on top.

    Raises:
      UserError: not an image, or one that the patch does not divide; sizes that do not fit; a checkpoint that is missing, damaged or of another type.
    """
    base.expect(feature, encoder="hf_resnet", kind="image", rank=3)
    height, width, channels = feature.shape
    if options.pretrained:
        of = _read(open_checkpoint(options.pretrained))
    else:
        of = Architecture(channels, options.embedding_size, options.hidden_sizes, options.depth, options.layer_type)
    if of.num_channels != channels:
        raise UserError(f"{options.pretrained} reads {of.num_channels} channels, the image has {channels}; choose another checkpoint")
    common = math.gcd(height, width)
    patch = options.patch or max(side for side in range(1, min(common, 32) + 1) if common % side == 0)
    stages = len(of.depths)
    segments(options, stages)  # which checks that a frozen stage is there
    return HfResnet(of, Patches(feature, patch), options, tuple(range(i, i + 1) for i in range(stages)), dim, dtype)


def _read(checkpoint: Checkpoint) -> Architecture:
    kind = checkpoint.config["model_type"]
    if kind not in MODEL_TYPES:
        raise UserError(f"{checkpoint.folder} is of model_type {kind!r}, encoder 'hf_resnet' reads {', '.join(MODEL_TYPES)}; choose another encoder")
    return checkpoint.sizes(Architecture)
