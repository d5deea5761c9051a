"""Checkpoints: what is read is what was written, and whatever is damaged, missing or foul is refused in one line that names it."""

from __future__ import annotations

import json
import pathlib
import struct
import sys
import tempfile
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cimrl_jax.errors import UserError
from cimrl_jax.nn import model_folder, pretrained, tensor_files
from cimrl_jax.nn.pretrained import Tensor
from cimrl_jax.nn.tuning import Tuning

few = hypothesis.settings(max_examples=60, deadline=None)
CONFIG = {"model_type": "resnet"}
CHANNELS, SIDE = 3, 2
TENSORS = (
    Tensor(("embeddings", "patch", "kernel"), ("embed.weight",), "patches"),
    Tensor(("embeddings", "positions"), ("embed.positions",), "same"),
    Tensor(("segment_0", "query", "kernel"), ("layer.0.query.weight", "layer.1.query.weight"), "transposed"),
    Tensor(("segment_1", "query", "kernel"), ("layer.2.query.weight",), "transposed"),
    Tensor(("segment_1", "stem", "kernel"), ("layer.2.stem.weight",), "convolution"),
    Tensor(("final", "scale"), ("norm",), "scale"),
    Tensor(("final", "shift"), ("norm",), "shift"),
)
SHAPES = {
    ("embeddings", "patch", "kernel"): (SIDE * SIDE * CHANNELS, 4),
    ("embeddings", "positions"): (1, 5, 4),
    ("segment_0", "query", "kernel"): (2, 4, 6),
    ("segment_1", "query", "kernel"): (1, 4, 6),
    ("segment_1", "stem", "kernel"): (1, 3, 3, 2, 4),
    ("final", "scale"): (4,),
    ("final", "shift"): (4,),
}


class Stub:
    """As much of an encoder as files are about."""

    def __init__(self, **tuned):
        self.tuning, self.runs = Tuning(**tuned), (range(2), range(2, 3))

    def tensors(self):
        return TENSORS

    def architecture(self):
        return CONFIG

    def slot_spec(self):
        return types.SimpleNamespace(element=CHANNELS)


def draw_params(seed: int = 0):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def stored(seed: int = 0):
    """The tensors of a checkpoint as torch would name and shape them."""
    rng = np.random.default_rng(seed)
    shapes = {"embed.weight": (4, 3, 2, 2), "embed.positions": (1, 5, 4), "layer.2.stem.weight": (4, 2, 3, 3)}
    shapes |= {f"layer.{i}.query.weight": (6, 4) for i in range(3)} | {f"norm.{part}": (4,) for part in ("weight", "bias", "running_mean")}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"norm.running_var": rng.uniform(0.5, 2, 4).astype(np.float32), "norm.num_batches_tracked": np.array(7)}


def put(folder: pathlib.Path, tensors=None, config=CONFIG, name: str = "model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.write(folder / name, stored() if tensors is None else tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def raw(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def load(where: str):
    return pretrained.read(pretrained.open_checkpoint(where), TENSORS, SHAPES)


def one_line(error: UserError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_each_form_is_what_it_says(tmp_path):
    found, own = load(put(tmp_path)), stored()
    assert {path: value.shape for path, value in found.items()} == SHAPES and {value.dtype for value in found.values()} == {np.dtype("float32")}
    kernel = found["embeddings", "patch", "kernel"].reshape(SIDE, SIDE, CHANNELS, 4)
    assert kernel[1, 0, 2, 3] == own["embed.weight"][3, 2, 1, 0]
    assert found["segment_0", "query", "kernel"][1, 3, 5] == own["layer.1.query.weight"][5, 3]
    assert found["segment_1", "stem", "kernel"][0, 2, 1, 0, 3] == own["layer.2.stem.weight"][3, 0, 2, 1]
    np.testing.assert_array_equal(found["embeddings", "positions"], own["embed.positions"])
    x = np.linspace(-1, 1, 4)
    normed = (x - own["norm.running_mean"]) / np.sqrt(own["norm.running_var"] + 1e-5) * own["norm.weight"] + own["norm.bias"]
    np.testing.assert_allclose(x * found["final", "scale"] + found["final", "shift"], normed, rtol=1e-6)


def test_the_writer_and_the_reader_agree_with_the_formats_own_package(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="the format's own package is the oracle (extra: export)")
    own = stored() | {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(2, np.float32)}
    tensor_files.write(tmp_path / "ours.safetensors", own)
    theirs = safetensors.load_file(tmp_path / "ours.safetensors")
    assert set(theirs) == set(own)
    safetensors.save_file({name: value.copy() for name, value in own.items()}, tmp_path / "theirs.safetensors")
    entries = tensor_files.scan(tmp_path / "theirs.safetensors")
    for name, value in own.items():
        np.testing.assert_array_equal(theirs[name], value)
        assert entries[name].shape == value.shape
        if value.dtype == np.float32:
            np.testing.assert_array_equal(tensor_files.load(name, entries[name]), value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_floats_become_float32_as_torch_turns_them(tmp_path, dtype):
    torch = pytest.importorskip("torch", reason="torch is the oracle (extra: parity)")
    save = pytest.importorskip("safetensors.torch", reason="torch writes its bfloat16 by it (extra: export)").save_file
    values = torch.tensor([[1.0, -2.5, 3.1415927, 1e-6], [0.1, -0.0, 65000.0, 1e-38]]).to(getattr(torch, dtype))
    save({"x": values}, tmp_path / "x.safetensors")
    ours = tensor_files.load("x", tensor_files.scan(tmp_path / "x.safetensors")["x"])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, values.float().numpy())


def shard(folder: pathlib.Path, tensors=None):
    tensors = stored() if tensors is None else tensors
    parts: dict[str, dict[str, np.ndarray]] = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    places = {}
    for i, (name, value) in enumerate(tensors.items()):
        file = list(parts)[i % 2]
        parts[file][name], places[name] = value, file
    for file, own in parts.items():
        put(folder, own, name=file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index, places


def test_a_sharded_checkpoint_reads_as_a_whole_one(tmp_path):
    shard(tmp_path / "many")
    whole, many = load(put(tmp_path / "one")), load(str(tmp_path / "many"))
    for path, value in whole.items():
        np.testing.assert_array_equal(many[path], value)


@pytest.mark.parametrize("prefix", ["", "bert.", "model.vit."])
def test_a_prefix_of_the_base_model_is_found(tmp_path, prefix):
    tensors = {prefix + name: value for name, value in stored().items()} | {"classifier.weight": np.ones((2, 4), np.float32)}
    plain, found = load(put(tmp_path / "plain")), load(put(tmp_path / "own", tensors))
    for path, value in plain.items():
        np.testing.assert_array_equal(found[path], value)


def test_what_becomes_no_parameter_is_named(tmp_path):
    extra = {"bert.pooler.weight": np.ones((2, 2), np.float32), "classifier.bias": np.ones(2, np.float32), "bert.ids": np.arange(3)}
    where = put(tmp_path, {f"bert.{name}": value for name, value in stored().items()} | extra)
    checkpoint = pretrained.open_checkpoint(where)
    assert pretrained.unused(checkpoint, TENSORS) == ("bert.pooler.weight", "classifier.bias")


def test_the_names_of_early_layer_norms_are_read(tmp_path):
    names = ("LayerNorm.gamma", "x.LayerNorm.beta", "x.gamma")
    where = put(tmp_path, {name: np.ones(2, np.float32) for name in names})
    assert set(pretrained.open_checkpoint(where).entries) == {"LayerNorm.weight", "x.LayerNorm.bias", "x.gamma"}


@hypothesis.settings(few, max_examples=20)
@hypothesis.given(seed=st.integers(0, 10_000))
def test_what_is_exported_comes_back_bit_for_bit(seed):
    params = draw_params(seed)
    with tempfile.TemporaryDirectory() as folder:
        pretrained.export(folder, unflatten_dict(params), Stub())  # type: ignore[arg-type]
        found = load(folder)
    for path, value in params.items():
        assert found[path].tobytes() == value.tobytes()


def test_lora_is_exported_merged_into_the_kernels(tmp_path):
    params, rng = draw_params(), np.random.default_rng(1)
    down, up = rng.normal(size=(2, 4, 3)).astype(np.float32), rng.normal(size=(2, 3, 6)).astype(np.float32)
    lora = {("segment_0", "query", "lora_a"): down, ("segment_0", "query", "lora_b"): up}
    pretrained.export(tmp_path, unflatten_dict(params | lora), Stub(lora_rank=3, lora_alpha=6.0))  # type: ignore[arg-type]
    found = pretrained.read(pretrained.open_checkpoint(str(tmp_path)), TENSORS, SHAPES | {path: leaf.shape for path, leaf in lora.items()})
    assert set(found) == set(SHAPES)
    path = ("segment_0", "query", "kernel")
    for block in range(2):
        np.testing.assert_allclose(found[path][block], params[path][block] + 2 * down[block] @ up[block], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["segment_1", "query", "kernel"], params["segment_1", "query", "kernel"])


def test_an_export_takes_the_files_that_prepare_inputs_along_and_spares_its_origin(tmp_path):
    origin = put(tmp_path / "origin")
    for name in ("preprocessor_config.json", "tokenizer.json", "vocab.txt"):
        (tmp_path / "origin" / name).write_text('{"size": 8}')
    (tmp_path / "origin" / "notes.md").write_text("not needed")
    encoder, params = Stub(pretrained=origin), unflatten_dict(draw_params())
    for _ in range(2):  # over an earlier one, too
        pretrained.export(tmp_path / "out", params, encoder)  # type: ignore[arg-type]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "vocab.txt",
    }
    assert pretrained.open_checkpoint(str(tmp_path / "out")).preprocessor == {"size": 8}
    before = (tmp_path / "origin" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="started from; export to another folder"):
        pretrained.export(origin, params, encoder)  # type: ignore[arg-type]
    assert (tmp_path / "origin" / "model.safetensors").read_bytes() == before


def test_an_export_that_fails_leaves_nothing_that_loads(tmp_path, monkeypatch):
    put(tmp_path)

    def full(path, tensors):
        raise UserError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(tensor_files, "write", full)
    with pytest.raises(UserError, match="the disk is full"):
        pretrained.export(tmp_path, unflatten_dict(draw_params()), Stub())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has no config.json"):
        pretrained.open_checkpoint(str(tmp_path))


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty": b"",
    "no header": b"\x04\0\0",
    "length past the end": raw({}, length=500),
    "length without end": raw({}, length=2**63),
    "not utf-8": raw(b"\xff\xfe{}"),
    "not json": raw(b"{'x': 1}"),
    "json without end": raw(b'{"x": '),
    "nested without end": raw(b"[" * 100_000),
    "a list": raw([]),
    "a number": raw(b"1"),
    "an entry that is no table": raw({"x": 1}),
    "an entry without type": raw({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "an entry without shape": raw({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "an entry without place": raw({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "a type that is no name": raw({"x": F32 | {"dtype": 32}}, bytes(8)),
    "a negative side": raw({"x": F32 | {"shape": [-2]}}, bytes(8)),
    "sides below zero that multiply to the size": raw({"x": F32 | {"shape": [-1, -2]}}, bytes(8)),
    "a side with a fraction": raw({"x": F32 | {"shape": [2.0]}}, bytes(8)),
    "a side that is true": raw({"x": F32 | {"shape": [True, 2]}}, bytes(8)),
    "a shape that is no list": raw({"x": F32 | {"shape": 2}}, bytes(8)),
    "a huge shape": raw({"x": F32 | {"shape": [2**40, 2**40]}}, bytes(8)),
    "three offsets": raw({"x": F32 | {"data_offsets": [0, 4, 8]}}, bytes(8)),
    "offsets turned round": raw({"x": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
    "an offset before the data": raw({"x": F32 | {"data_offsets": [-8, 0]}}, bytes(8)),
    "an offset past the end": raw({"x": F32 | {"data_offsets": [0, 80], "shape": [20]}}, bytes(8)),
    "a size that is not the shape's": raw({"x": F32 | {"shape": [3]}}, bytes(8)),
    "a hole": raw({"x": F32 | {"data_offsets": [8, 16]}}, bytes(16)),
    "an overlap": raw({"x": F32, "y": F32 | {"data_offsets": [4, 12]}}, bytes(12)),
    "the same bytes twice": raw({"x": F32, "y": F32}, bytes(8)),
    "bytes left over": raw({"x": F32}, bytes(9)),
    "bytes missing": raw({"x": F32}, bytes(7)),
    "a key twice": raw(b'{"x": %s, "x": %s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94.",
    "a page of a web site": b"<!doctype html><html><body>not found</body></html>",
    "a pointer to large storage": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, how):
    put(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(DAMAGED[how])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged: .*; fetch it again") as caught:
        pretrained.open_checkpoint(str(tmp_path))
    one_line(caught.value)


@few
@hypothesis.given(data=st.data())
def test_no_cut_and_no_changed_byte_ends_in_anything_but_a_read_or_a_line(data):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        put(folder)
        target = folder / data.draw(st.sampled_from(["model.safetensors", "config.json"]))
        content = bytearray(target.read_bytes())
        header = 8 + struct.unpack("<Q", content[:8])[0] if target.suffix == ".safetensors" else len(content)
        if data.draw(st.booleans()):
            cut = content[: data.draw(st.integers(0, len(content) - 2))]
            target.write_bytes(cut)
            with pytest.raises(UserError, match=target.name) as caught:
                load(str(folder))
            one_line(caught.value)
            return
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
        target.write_bytes(content)
        try:
            assert {path: value.shape for path, value in load(str(folder)).items()} == SHAPES
        except UserError as error:
            assert str(folder) in one_line(error)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"resnet"', b"\xff\xff", b"[" * 100_000, b"{'model_type': 'resnet'}"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_a_json_file_that_is_none_is_named(tmp_path, name, content):
    shard(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not") as caught:
        pretrained.open_checkpoint(str(tmp_path))
    one_line(caught.value)


@pytest.mark.parametrize("kind", [None, 3, ["resnet"], {}, "", "mamba"])
def test_a_type_that_no_encoder_reads_is_refused_with_those_that_are_read(tmp_path, kind):
    with pytest.raises(UserError, match="which no encoder reads; choose a checkpoint of type .*resnet") as caught:
        pretrained.model_type(put(tmp_path, config={"model_type": kind} if kind is not None else {}))
    one_line(caught.value)
    assert pretrained.model_type(put(tmp_path)) == "resnet"


@pytest.mark.parametrize(
    "file",
    [
        *("../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "./model.safetensors", "..", ".", "", "x\0.safetensors"),
        *("..\\model.safetensors", "C:\\model.safetensors", "C:model.safetensors", "\\\\host\\share\\model.safetensors", "sub\\model.safetensors"),
        *("pytorch_model.bin", "model.safetensors.pkl", "model.safetensors/", "a\n.safetensors"),
    ],
)
def test_an_index_cannot_name_a_file_elsewhere(tmp_path, file):
    folder = tmp_path / "in"
    index, places = shard(folder)
    put(tmp_path, config=None)  # there would be something to read
    index.write_text(json.dumps({"weight_map": places | {"embed.weight": file}}))
    with pytest.raises(UserError, match=r"index\.json names the file .* do not use this checkpoint") as caught:
        pretrained.open_checkpoint(str(folder))
    one_line(caught.value)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"x": 1}}, {"weight_map": 3}])
def test_an_index_without_a_map_is_named(tmp_path, content):
    index, _ = shard(tmp_path)
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index\.json has no weight_map"):
        pretrained.open_checkpoint(str(tmp_path))


def test_a_shard_that_is_missing_or_lacks_a_tensor_is_named(tmp_path):
    index, places = shard(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {"other": "model-2.safetensors"}}))
    with pytest.raises(UserError, match=r"model-2\.safetensors lacks tensor 'other'"):
        pretrained.open_checkpoint(str(tmp_path))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read .*model-2\.safetensors"):
        pretrained.open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "resnet18.pth", "model.pt"])
def test_pickles_are_never_opened_and_the_line_that_converts_them_works(tmp_path, name):
    torch = pytest.importorskip("torch", reason="torch is the oracle (extra: parity)")
    pytest.importorskip("safetensors", reason="the line uses it (extra: export)")
    own = stored()
    torch.save({key: torch.tensor(value) for key, value in own.items()}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match=f"{name} is pickled, which is never opened here") as caught:
        pretrained.open_checkpoint(str(tmp_path))
    code = one_line(caught.value).split('python -c "', 1)[1].rstrip('"')
    exec(code, {})
    for path, value in load(put(tmp_path / "plain")).items():
        np.testing.assert_array_equal(load(str(tmp_path))[path], value)


def test_what_is_not_there_is_named(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty has neither model\.safetensors nor model\.safetensors\.index\.json"):
        pretrained.open_checkpoint(str(empty))
    with pytest.raises(UserError, match=r"bare has no config\.json"):
        pretrained.open_checkpoint(put(tmp_path / "bare", config=None))
    for where in (str(tmp_path / "nowhere"), str(tmp_path / "bare" / "model.safetensors"), "", "./nowhere", "a/b/c", "a\0b", "x" * 5000 + "/" * 9):
        with pytest.raises(UserError, match="is no folder; give the folder that holds config.json") as caught:
            pretrained.open_checkpoint(where)
        one_line(caught.value)


def test_a_model_id_is_fetched_once_without_pickles_and_a_failure_says_how_to_do_without(tmp_path, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "owner/there":
            raise ConnectionError("no route to host\nat line 3")
        return put(tmp_path / "cached")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download))
    model_folder._fetch.cache_clear()
    try:
        assert pretrained.model_type("owner/there") == pretrained.model_type("owner/there") == "resnet"
        assert asked == [("owner/there", ["*.json", "*.safetensors", "*.txt"])]
        with pytest.raises(UserError, match=r"owner/away.*\(no route to host\); if there is no network, fetch config\.json") as caught:
            pretrained.open_checkpoint("owner/away")
        one_line(caught.value)
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(UserError, match="needs huggingface_hub"):
            pretrained.open_checkpoint("owner/other")
    finally:
        model_folder._fetch.cache_clear()


def without(name):
    return {key: value for key, value in stored().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("layer.1.query.weight"), r"lacks 1 of the \d+ tensors that it should have: layer\.1\.query\.weight$"),
        (without("norm.running_var"), r"lacks 1 of .*: norm\.running_var$"),
        ({"unrelated": np.ones(2, np.float32)}, r"lacks 10 of .* and 6 more$"),
        (stored() | {"layer.2.query.weight": np.ones((6, 5), np.float32)}, r"layer\.2\.query\.weight is \[6, 5\], expected \[6, 4\]; its config"),
        (stored() | {"layer.2.query.weight": np.ones(24, np.float32)}, r"layer\.2\.query\.weight is \[24\], expected \[6, 4\]"),
        (stored() | {"layer.2.stem.weight": np.ones((4, 2, 1, 1), np.float32)}, r"stem\.weight is \[4, 2, 1, 1\], expected \[4, 2, 3, 3\]"),
        (stored() | {"embed.weight": np.ones((4, 3, 4, 4), np.float32)}, r"embed\.weight is \[4, 3, 4, 4\], expected \[4, ...\] of 48 numbers"),
        (stored() | {"norm.bias": np.ones((4, 1), np.float32)}, r"norm\.bias is \[4, 1\], expected \[4\]"),
        (stored() | {"embed.positions": np.full((1, 5, 4), np.nan, np.float32)}, r"'embed\.positions' holds numbers that are not finite"),
        (stored() | {"norm.running_var": np.full(4, -1, np.float32)}, r"'norm\.weight' holds numbers that are not finite|'norm\.running_var'"),
        (stored() | {"embed.positions": np.ones((1, 5, 4), np.int64)}, r"'embed\.positions' is of type I64, expected one of F64, F32"),
    ],
)
def test_tensors_that_are_missing_misshapen_or_foul_are_named_with_both_shapes(tmp_path, tensors, message):
    where = put(tmp_path, tensors)
    with pytest.raises(UserError, match=message) as caught:
        load(where)
    assert where in one_line(caught.value)


def test_a_parameter_that_no_tensor_makes_is_a_mistake_of_the_encoder(tmp_path):
    checkpoint = pretrained.open_checkpoint(put(tmp_path))
    with pytest.raises(ValueError, match="differ"):
        pretrained.read(checkpoint, TENSORS, SHAPES | {("final", "bias"): (4,)})
    params = flatten_dict(unflatten_dict(draw_params())) | {("final", "bias"): np.ones(4, np.float32)}
    with pytest.raises(ValueError, match="lack"):
        pretrained.export(tmp_path / "out", unflatten_dict(params), Stub())  # type: ignore[arg-type]
