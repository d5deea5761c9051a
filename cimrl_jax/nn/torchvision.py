"""ResNets with torchvision's (and timm's) names for tensors, seen as the ResNet that `transformers` would have made of them.

Recognised by their tensors' names: such a folder needs no config.json, and if it has one, its model_type is "resnet-torchvision" or absent (timm).
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cimrl_jax.errors import UserError

MODEL_TYPE = "resnet-torchvision"
LAYER = re.compile(r"layer([1-9]\d*)\.(\d+)\.(conv[123]|bn[123]|downsample\.[01])\.(\w+)")
STEM = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
HEAD = ("fc.",)


def recognises(names: Iterable[str]) -> bool:
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"} <= set(names)


def rename(name: str) -> str:
    """The name of a tensor in `transformers`' ResNet; one that it has not stays as it is."""
    found = LAYER.fullmatch(name)
    if found is None:
        first, _, leaf = name.rpartition(".")
        return f"{STEM[first]}.{leaf}" if first in STEM else name
    stage, layer, part, leaf = found.groups()
    place = "shortcut" if part.startswith("downsample") else f"layer.{int(part[-1]) - 1}"
    kind = "convolution" if part.startswith("conv") or part == "downsample.0" else "normalization"
    return f"encoder.stages.{int(stage) - 1}.layers.{layer}.{place}.{kind}.{leaf}"


def config(folder: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """config.json of the architecture that the tensors' names and shapes tell of (stride in the 3x3 convolution: version 1.5).

    Raises:
      UserError: a relative of the ResNet (squeeze and excitation, a deep stem, grouped convolutions, ...), or tensors missing.
    """
    foreign = sorted(name for name in shapes if rename(name) == name and not name.startswith(HEAD))
    if foreign:
        raise UserError(f"{folder}: tensor {foreign[0]!r} is of no plain ResNet; use a checkpoint of ResNet-18, 34, 50, 101 or 152")
    places = {(int(found[1]), int(found[2])) for found in map(LAYER.fullmatch, shapes) if found}
    stages = range(1, max(stage for stage, _ in places) + 1)
    last = "conv3" if "layer1.0.conv3.weight" in shapes else "conv2"

    def side(name: str, axis: int) -> int:
        if len(shapes.get(name, ())) != 4:
            raise UserError(
                f"{folder}: tensor {name!r} is {list(shapes[name]) if name in shapes else 'missing'}, expected a convolution; fetch it again"
            )
        return shapes[name][axis]

    return {
        "model_type": "resnet",
        "num_channels": side("conv1.weight", 1),
        "embedding_size": side("conv1.weight", 0),
        "hidden_sizes": [side(f"layer{stage}.0.{last}.weight", 0) for stage in stages],
        "depths": [sum(own == stage for own, _ in places) for stage in stages],
        "layer_type": "bottleneck" if last == "conv3" else "basic",
        "hidden_act": "relu",
    }


def preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json out of timm's config.json; empty where it says nothing."""
    own = config.get("pretrained_cfg")
    if not isinstance(own, dict):
        return {}
    size = own.get("input_size")
    found = {"image_mean": own.get("mean"), "image_std": own.get("std"), "size": size[-1] if isinstance(size, list) and size else None}
    return {key: value for key, value in found.items() if value is not None}
