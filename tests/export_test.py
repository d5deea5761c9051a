"""From a run to folders that others load, and back into a run on kept features: the whole way on real digits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from cimrl_jax import experiment, export
from cimrl_jax.errors import UserError
from cimrl_jax.main import main
from cimrl_jax.nn.encoders import hf_vit
from cimrl_jax.nn.model_folder import open_checkpoint
from tests import tiny

VIT = {"encoder": "hf_vit", "patch_size": 14, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
CONFIG = {
    **{key: value for key, value in tiny.STUDY.items() if key not in ("data", "model")},
    "data": {"name": "digits"},
    "model": {"dim": 8, "heads": 2, "fusion_layers": 1, "causal_layers": 0, "text": {"encoder": "text_transformer", "depth": 0}},
}
TRAIN = {**tiny.STUDY["train"], "steps": 2, "eval_every": 2}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the workdir of a run that trained a small vision transformer, the folder it was exported to)."""
    room = tmp_path_factory.mktemp("export")
    config = {**CONFIG, "workdir": str(room / "run"), "train": TRAIN, "model": {**CONFIG["model"], "image": VIT}}
    experiment.run(config, parts=("train",), quiet=True)
    assert main(["export", "--workdir", str(room / "run"), "--to", str(room / "out"), "--seed", "1"]) == 0
    return room / "run", room / "out"


def test_an_exported_encoder_is_what_was_trained_and_seeds_differ(exported, tmp_path):
    run, folder = exported
    first = open_checkpoint(str(folder / "image"))
    again = open_checkpoint(str(export.run(run, tmp_path, method="erm", seed=1)[0]))
    other = open_checkpoint(str(export.run(run, tmp_path / "other", seed=0)[0]))
    assert first.config["model_type"] == "vit" and first.config["image_size"] == 28
    name = "encoder.layer.0.intermediate.dense.weight"
    np.testing.assert_array_equal(first.load(name), again.load(name))
    assert (first.load(name) != other.load(name)).any()


def test_transformers_loads_it(exported):
    transformers = pytest.importorskip("transformers", reason="pip install 'cimrl_jax[parity]'")
    pytest.importorskip("torch", reason="pip install 'cimrl_jax[parity]'")
    _, told = transformers.ViTModel.from_pretrained(exported[1] / "image", add_pooling_layer=False, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]


def test_a_run_on_its_kept_features_trains_evaluates_and_shows_the_pictures(exported, tmp_path):
    image = shutil.copytree(exported[1] / "image", tmp_path / "image")
    section = {"pretrained": str(image), "freeze": "all", "features": "disk"}
    config = {**CONFIG, "workdir": str(tmp_path / "run"), "train": TRAIN, "model": {**CONFIG["model"], "image": section}}
    config["data"] = {"name": "digits", "cache": str(tmp_path / "cache")}
    found = experiment.run(config, quiet=True)
    assert found is not None and found.cell("erm", "test", "accuracy") is not None
    [shards] = {path.parent for path in (tmp_path / "cache").glob("*/*.npy")}
    assert (shards / "index.json").is_file()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "features of image" in page and "data:image/png" in page
    with pytest.raises(UserError, match="no encoder of a published architecture"):
        export.run(tmp_path / "run", tmp_path / "out")
    said = (image / "config.json").read_text()
    (image / "config.json").write_text(said.replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    with pytest.raises(UserError, match=r"was trained on other weights than those in model\.image\.pretrained now"):
        experiment.run(config, parts=("evaluate",), quiet=True)
    assert len({path.parent for path in (tmp_path / "cache").glob("*/*.npy")}) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "x"], "--workdir: missing"),
        (["--workdir", "nowhere", "--to", "x"], "there is no nowhere/config.yaml"),
        (["--workdir", "{run}", "--to", "x", "--method", "er"], "no method 'er'; did you mean 'erm'"),
        (["--workdir", "{run}", "--to", "x", "--seed", "7"], "no seed 7; choose one of 0, 1"),
        (["--workdir", "{run}", "--to", "x", "--seed", "one"], "expected an integer"),
        (["--workdir", "{run}", "--to", "x", "--train.steps", "3"], "knows no '--train.steps'"),
    ],
)
def test_bad_words_give_one_line(exported, capsys, words, says):
    assert main(["export", *(word.format(run=exported[0]) for word in words)]) == 2
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1


def test_what_is_wrong_with_the_model_is_told_before_features_are_computed(exported, tmp_path):
    section = {"pretrained": str(exported[1] / "image"), "freeze": "all", "features": "disk"}
    config = {**CONFIG, "workdir": str(tmp_path / "run"), "train": TRAIN, "model": {**CONFIG["model"], "image": section, "query": "nope"}}
    config["data"] = {"name": "digits", "cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="query='nope' names no modality"):
        experiment.run(config, quiet=True)
    assert not (tmp_path / "cache").exists()


def test_an_encoder_that_reads_the_export_starts_there(exported):
    options = hf_vit.Options(pretrained=str(exported[1] / "image"))
    assert hf_vit.expected(options).size == (28, 28)
