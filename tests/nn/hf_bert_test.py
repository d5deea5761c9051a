"""BERT and RoBERTa against `transformers`: outputs, gradients, folders both ways; with random weights, and with real ones where they are."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cimrl_jax.data import tokenise
from cimrl_jax.errors import UserError
from cimrl_jax.nn import pretrained
from cimrl_jax.nn.encoders import hf_bert
from cimrl_jax.nn.model_folder import open_checkpoint
from cimrl_jax.types import Expected, Feature, Slots

torch = pytest.importorskip("torch", reason="parity is with transformers and torch: pip install 'cimrl_jax[parity]'")
transformers = pytest.importorskip("transformers", reason="parity is with transformers and torch: pip install 'cimrl_jax[parity]'")
tokenisers = pytest.importorskip("tests.tokenisers", reason="tokenisers are made with tokenizers: pip install 'cimrl_jax[parity]'")

WEIGHTS = pathlib.Path(os.environ.get("CIMRL_WEIGHTS", pathlib.Path(__file__).parents[2] / "weights"))
MINILM = WEIGHTS / "minilm"
real = pytest.mark.skipif(not MINILM.exists(), reason=f"no real weights at {MINILM}: python launch/fetch_weights.py minilm {MINILM}")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 24}
TEXTS = ["the digital cat near the harbour", "a goat", "zz, circle dog's"]
LENGTH = 14
# (class of transformers, changes of its configuration, whether a piece between others is masked)
CASES = {
    "bert": ("BertModel", {}, False),
    "bert with more rows than words": ("BertModel", {"vocab_size": 45, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}, True),
    "bert below a classifier": ("BertForSequenceClassification", {"hidden_act": "relu", "num_hidden_layers": 1}, False),
    "roberta": ("RobertaModel", {}, False),
    "roberta below its first head": ("RobertaForMaskedLM", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}, True),
}


def kind_of(name: str) -> str:
    return "roberta" if "Roberta" in name else "bert"


def save(folder: pathlib.Path, name: str, changes: dict[str, Any], seed: int = 0):
    """A folder with tokeniser and weights, every number of which is drawn; the model in torch."""
    kind = kind_of(name)
    (tokenisers.bytes_of if kind == "roberta" else tokenisers.word_pieces)(folder)
    reader = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model_class = getattr(transformers, name)
    own = {"vocab_size": len(reader), "pad_token_id": reader.pad_token_id} | SMALL | changes
    model = model_class(model_class.config_class(**own))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.mean() == 1))
    model.save_pretrained(folder)
    return model.eval()


def make(feature: Feature, dtype: Any = jnp.float32, **options) -> Any:
    return hf_bert.build(hf_bert.Options(**options), feature=feature, dim=6, heads=1, mlp_ratio=1.0, dropout=0.0, dtype=dtype)


def of_folder(folder: pathlib.Path, length: int = LENGTH, **options) -> tuple[Any, Any]:
    """(the encoder of a checkpoint, its tokeniser)."""
    tokeniser = tokenise.Pretrained(str(folder), length)
    return make(tokeniser.feature(), pretrained=str(folder), **options), tokeniser


def shapes_of(encoder) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Of all parameters under "backbone"."""

    def everything(module, ids):
        return module.encode(module.embed(ids, jnp.ones(1, bool)), deterministic=True)

    ids = jnp.ones((1, *encoder.feature.shape), jnp.int32)
    made = jax.eval_shape(lambda: encoder.init(jax.random.key(0), ids, method=everything)["params"]["backbone"])
    return {path: leaf.shape for path, leaf in flatten_dict(made).items()}  # pyright: ignore[reportAttributeAccessIssue] -- the leaves


def loaded(encoder) -> Any:
    """The checkpoint's values as the encoder's parameters."""
    found = pretrained.read(open_checkpoint(encoder.tuning.pretrained), encoder.tensors(), shapes_of(encoder))
    return {"backbone": unflatten_dict({path: jnp.asarray(value) for path, value in found.items()})}


@functools.partial(jax.jit, static_argnums=0)
def embed(encoder, params, ids) -> Slots:
    return encoder.apply({"params": params}, ids, jnp.ones(len(ids), bool), method="embed")


@functools.partial(jax.jit, static_argnums=0)
def features(encoder, params, slots: Slots) -> Slots:
    return encoder.apply({"params": params}, slots, deterministic=True, method="features")


def oracle(model, reader, texts, mask=None):
    """(last hidden states of `reader(texts)`, the embeddings of its ids, its attention mask), the first two with gradients."""
    model, seen = model.base_model, []
    read = reader(texts, padding=True, return_tensors="pt")
    attended = read["attention_mask"] if mask is None else mask(read["attention_mask"])
    hook = model.embeddings.word_embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = model(input_ids=read["input_ids"], attention_mask=attended).last_hidden_state
    hook.remove()
    seen[0].retain_grad()
    return out, seen[0], attended.numpy().astype(bool)


def close(ours, theirs, within=1e-5):
    theirs = np.asarray(theirs)
    assert np.abs(np.asarray(ours) - theirs).max() <= within * np.abs(theirs).max()


def padded(values, count: int):
    """[b, n, w] with zeros up to n = count."""
    return np.pad(np.asarray(values), ((0, 0), (0, count - values.shape[1])) + ((0, 0),) * (values.ndim - 2))


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_those_of_transformers(name, tmp_path):
    kind, changes, holes = CASES[name]
    model = save(tmp_path, kind, changes)
    encoder, tokeniser = of_folder(tmp_path)
    params = loaded(encoder)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)

    def hide(mask):
        mask[:, 2] = 0
        return mask

    theirs, words, attended = oracle(model, reader, TEXTS, hide if holes else None)
    attended, count = padded(attended, LENGTH + 2), LENGTH + 2
    probe = np.random.default_rng(1).normal(size=(len(TEXTS), count, SMALL["hidden_size"])).astype(np.float32) * attended[..., None]
    (theirs * torch.tensor(probe[:, : theirs.shape[1]])).sum().backward()
    slots = embed(encoder, params, tokeniser.encode(TEXTS))
    if holes:
        slots = Slots(slots.values.at[:, 1].set(jnp.nan), slots.mask.at[:, 1].set(False))

    def total(values):
        found = features(encoder, params, Slots(values, slots.mask))
        return (found.values * probe).sum(), found

    (_, ours), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(slots.values)
    np.testing.assert_array_equal(ours.mask, attended)
    close(ours.values, padded(theirs.detach(), count) * attended[..., None])
    expected = padded(words.grad, count)[:, 1:-1] * np.asarray(slots.mask)[..., None]
    close(gradient, expected)
    assert np.abs(expected).max() > 0.1 and not np.asarray(ours.values)[~attended].any() and ours.values.dtype == jnp.float32
    spec = encoder.token_spec()
    assert ours.values.shape == (len(TEXTS), spec.count, spec.width) and spec.lead == 1 and spec.grid is None


@pytest.mark.parametrize("name", ["BertModel", "RobertaModel"])
def test_slots_are_the_checkpoints_embeddings_and_render_gives_the_ids_back(name, tmp_path):
    model = save(tmp_path, name, {})
    encoder, tokeniser = of_folder(tmp_path)
    params, ids = loaded(encoder), tokeniser.encode(TEXTS)
    slots = embed(encoder, params, ids)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    table = model.embeddings.word_embeddings.weight.detach().numpy()
    for row, text in enumerate(TEXTS):
        own = reader(text, add_special_tokens=False)["input_ids"]
        np.testing.assert_array_equal(slots.values[row, : len(own)], table[own])
        assert np.asarray(slots.mask[row]).tolist() == [True] * len(own) + [False] * (LENGTH - len(own))
    shown = encoder.apply({"params": params}, slots.values + 0.01, method="render")
    np.testing.assert_array_equal(np.where(slots.mask, shown, 0), ids)


def test_a_text_that_is_absent_or_empty_is_masked_throughout_with_finite_second_derivatives(tmp_path):
    save(tmp_path, "BertModel", {"num_hidden_layers": 1})
    encoder, tokeniser = of_folder(tmp_path)
    params, ids = loaded(encoder), jnp.asarray(tokeniser.encode(["the cat", "the dog", ""]))
    slots = embed(encoder, params, ids)
    slots = Slots(slots.values, slots.mask & jnp.array([True, False, True])[:, None])
    found = features(encoder, params, Slots(slots.values.at[1].set(jnp.nan), slots.mask))
    assert np.asarray(found.mask).any(1).tolist() == [True, False, False] and not np.asarray(found.values)[1:].any()

    def first(values):
        return jnp.sin(features(encoder, params, Slots(values, slots.mask)).values).sum()

    twice = jax.jit(jax.grad(lambda values: (jax.grad(first)(values) ** 2).sum()))(slots.values)
    assert np.isfinite(twice).all() and twice[0].any() and not twice[1:].any()


MADE = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 12, "max_position_embeddings": 20}


@pytest.mark.parametrize(
    ("architecture", "options"), [("bert", {"hidden_act": "gelu_new"}), ("roberta", {"lora_rank": 2, "lora_targets": ("query", "narrow")})]
)
def test_an_exported_folder_gives_the_same_in_transformers_and_here(architecture, options, tmp_path):
    """Of an encoder without a checkpoint: `transformers` is given the ids that the table's rows have."""
    feature = tokenise.fit(TEXTS, length=8).feature()
    encoder = make(feature, architecture=architecture, **MADE, **options)
    rng = np.random.default_rng(0)
    params = {"backbone": unflatten_dict({path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes_of(encoder).items()})}
    pretrained.export(tmp_path, params["backbone"], encoder)
    model = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    words, ids = len(feature.vocabulary), tokenise.fit(TEXTS, length=8).encode(TEXTS[:1])
    valid = int((ids != 0).sum())
    whole = np.concatenate([[words], ids[0, :valid], [words + 1]])[None]
    theirs = model(input_ids=torch.tensor(whole, dtype=torch.long)).last_hidden_state.detach().numpy()
    ours = features(encoder, params, embed(encoder, params, ids))
    assert type(model).__name__ == hf_bert.MODELS[architecture] and valid == 6
    close(ours.values[:, : valid + 2], theirs)


def test_what_is_exported_from_a_checkpoint_is_a_checkpoint_with_its_tokeniser(tmp_path):
    save(tmp_path / "one", "RobertaModel", {})
    encoder, tokeniser = of_folder(tmp_path / "one", freeze=(0,))
    params = loaded(encoder)
    assert set(params["backbone"]) == {"embeddings", "segment_0", "segment_1"}
    pretrained.export(tmp_path / "two", params["backbone"], encoder)
    again, other = of_folder(tmp_path / "two")
    ids = tokeniser.encode(TEXTS)
    np.testing.assert_array_equal(other.encode(TEXTS), ids)
    ours, theirs = (features(own, values, embed(own, values, ids)).values for own, values in ((encoder, params), (again, loaded(again))))
    close(ours, theirs, 1e-6)


def test_bfloat16_is_near_float32(tmp_path):
    save(tmp_path, "BertModel", {})
    encoder, tokeniser = of_folder(tmp_path)
    coarse = make(encoder.feature, jnp.bfloat16, pretrained=str(tmp_path))
    params = loaded(encoder)
    slots = embed(encoder, params, tokeniser.encode(TEXTS))
    ours = features(coarse, params, slots).values
    assert ours.dtype == jnp.float32 and slots.values.dtype == jnp.float32
    close(ours, features(encoder, params, slots).values, 0.05)


@pytest.mark.parametrize(("name", "length"), [("BertModel", 22), ("RobertaModel", 20)])
def test_the_data_set_is_told_tokeniser_and_length_and_all_of_it_can_be_read(name, length, tmp_path):
    save(tmp_path, name, {})
    options = hf_bert.Options(pretrained=str(tmp_path))
    assert hf_bert.expected(options) == Expected(tokeniser=str(tmp_path), length=length) and hf_bert.expected(hf_bert.Options()) == Expected()
    encoder, tokeniser = of_folder(tmp_path, length)
    full = np.full((1, length), 7, np.int32)
    params = loaded(encoder)
    assert features(encoder, params, embed(encoder, params, full)).mask.all()
    with pytest.raises(UserError, match=f"texts have {length + 1} ids, but there are positions for {length}"):
        of_folder(tmp_path, length + 1)


def test_words_of_the_data_sets_own_are_no_input_for_a_checkpoint(tmp_path):
    save(tmp_path, "BertModel", {})
    with pytest.raises(UserError, match="these ids stand for the data set's own words"):
        make(tokenise.fit(TEXTS, length=4).feature(), pretrained=str(tmp_path))


def test_a_tokeniser_with_more_words_than_rows_is_refused(tmp_path):
    save(tmp_path, "BertModel", {"vocab_size": 30})
    with pytest.raises(UserError, match="makes 39 different ids, but the embeddings have 30 rows"):
        of_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "tanh"}, r"config\.json: hidden_act='tanh' is unknown"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not what encoder 'hf_bert' computes"),
        ({"is_decoder": True}, "is_decoder=true is not what"),
        ({"num_attention_heads": 3}, "hidden_size=16 is no multiple of the 3 attention heads"),
        ({"max_position_embeddings": 2}, "max_position_embeddings=2 leaves no place for a word; it must be 3 or more"),
        ({"hidden_size": 0}, "hidden_size.*at least 1"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": 8}, "tell of another architecture"),
    ],
)
def test_a_configuration_that_cannot_be_computed_is_named(changes, message, tmp_path):
    save(tmp_path, "BertModel", {})
    told = json.loads((tmp_path / "config.json").read_text("utf-8")) | changes
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=message):
        loaded(of_folder(tmp_path)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "x", "num_layers": 2}, "num_layers=2 is given beside a checkpoint"),
        ({"hidden_size": 10, "num_heads": 4}, "hidden_size=10 is no multiple of the 4"),
        ({"max_position_embeddings": 5}, "texts have 4 ids, but there are positions for 3"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make(tokenise.fit(TEXTS, length=4).feature(), **options)


SENTENCES = ["A man plays the guitar.", "Someone is making music on a string instrument.", "The stock market fell sharply today."]


def similarities(tokens, mask):
    """Cosines between sentences: of the means over valid tokens."""
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    mean = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    return mean @ mean.T


@pytest.mark.slow
@real
def test_sentences_are_as_alike_as_transformers_says():
    reader, model = transformers.AutoTokenizer.from_pretrained(MINILM), transformers.AutoModel.from_pretrained(MINILM).eval()
    theirs, _, attended = oracle(model, reader, SENTENCES)
    encoder, tokeniser = of_folder(MINILM, 20)
    params = loaded(encoder)
    ours = features(encoder, params, embed(encoder, params, tokeniser.encode(SENTENCES)))
    np.testing.assert_array_equal(ours.mask[:, : attended.shape[1]], attended)
    close(np.asarray(ours.values)[:, : attended.shape[1]][attended], theirs.detach().numpy()[attended])
    alike = similarities(np.asarray(ours.values), np.asarray(ours.mask))
    np.testing.assert_allclose(alike, similarities(theirs.detach().numpy(), attended), atol=1e-5)
    assert alike[0, 1] > 0.4 > alike[0, 2]


@pytest.mark.slow
@real
def test_real_weights_read_as_roberta_with_a_position_for_padding_are_bert(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")  # transformers brings it
    tensors = safetensors.load_file(MINILM / "model.safetensors")
    name = next(name for name in tensors if name.endswith("position_embeddings.weight"))
    tensors[name] = np.concatenate([np.zeros_like(tensors[name][:1]), tensors[name]])
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    told = json.loads((MINILM / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(told | {"model_type": "roberta", "max_position_embeddings": 513, "pad_token_id": 0}))
    for own in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINILM / own, tmp_path)
    (bert, tokeniser), (roberta, _) = of_folder(MINILM, 20), of_folder(MINILM, 20)
    roberta = make(tokeniser.feature(), pretrained=str(tmp_path))
    ids = tokeniser.encode(SENTENCES)
    found = [features(own, values, embed(own, values, ids)).values for own, values in ((bert, loaded(bert)), (roberta, loaded(roberta)))]
    np.testing.assert_array_equal(found[0], found[1])
    assert roberta.of.first == 1 and bert.of.first == 0 and hf_bert.expected(roberta.tuning).length == 510
