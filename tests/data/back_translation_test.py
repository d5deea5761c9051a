"""Second versions of texts: what is translated and what is not, what survives a kill, who is asked, and that only views ever see them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cimrl_jax.data import augment_text, back_translation, tokenise, translators, views
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.train import step as fused
from cimrl_jax.types import Batch, Feature
from tests import tiny
from tests.nn import cases

ROUTE = "apertium:eng-spa"
real = pytest.mark.skipif(
    shutil.which("apertium") is None or not pathlib.Path("/usr/share/apertium/modes/eng-spa.mode").exists(),
    reason="Apertium is not installed: apt install apertium apertium-eng-spa",
)

APERTIUM = """#!{python}
# Speaks like the real one: its directions, or paragraphs. Every word is written backwards, there the first in capitals, back a dog is a hound.
import pathlib, sys, time
here = pathlib.Path(__file__).parent
if sys.argv[1] == "-l":
    print("  aaa-bbb\\n  bbb-aaa\\n  slo-wer\\n  wer-slo\\n  fai-led\\n  led-fai")
else:
    direction, paragraphs = sys.argv[2], sys.stdin.read().split("\\n\\n")
    with (here / "calls").open("a") as file:
        file.write(direction + " " + str(len(paragraphs)) + "\\n")
    if direction == "slo-wer":
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        (here / "child").write_text(str(child.pid))
        child.wait()
    if direction == "fai-led":
        sys.exit("no\\nluck")
    for number, text in enumerate(paragraphs):
        words = [word if word.lower().startswith("qx") else word[::-1] for word in text.split(" ")]
        if direction == "aaa-bbb":
            words[0] = words[0].upper()
        else:
            words = ["hound" if word.lower() == "dog" else "" if word == "vanish" else word for word in words]
        if "merge" in words:
            sys.stdout.write(" ".join(words) + " ")
            continue
        sys.stdout.write(" ".join(words) + ("\\n\\n" if number + 1 < len(paragraphs) else "\\n"))
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A program that is called as Apertium is, first on the path; returns what it was called for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "apertium").write_text(APERTIUM.format(python=sys.executable))
    (folder / "apertium").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


@pytest.fixture
def legs(monkeypatch):
    """Makes plain functions of one text the route, whatever the spec, and returns what they were asked for."""

    def use(*functions: Any) -> list[str]:
        asked: list[str] = []

        def leg(function: Any, texts: list[str]) -> list[str]:
            asked.extend(texts)
            return [function(text) for text in texts]

        monkeypatch.setattr(translators, "route", lambda spec, timeout: (spec, lambda: [lambda texts, own=own: leg(own, texts) for own in functions]))
        return asked

    return use


def test_texts_go_there_and_back_in_batches_each_once(calls, monkeypatch):
    monkeypatch.setattr(back_translation, "BATCH", 2)
    texts = ["a dog", "two", "a dog", "", "the dog <user> dog", "four"]
    seen = []
    back = back_translation.translate(texts, "apertium:aaa-bbb", progress=lambda *own: seen.append(own))
    assert back == ["A hound", "TWO", "A hound", "", "THE hound <user> hound", "FOUR"]
    assert calls() == ["aaa-bbb 2", "bbb-aaa 2"] * 2
    assert seen == [(0, 4), (2, 4), (4, 4)]


def test_where_texts_ran_together_each_is_translated_alone(calls):
    assert back_translation.translate(["a dog", "x egrem", "two"], "apertium:aaa-bbb") == ["A hound", "X egrem", "TWO"]
    assert calls() == ["aaa-bbb 3", "aaa-bbb 1", "aaa-bbb 1", "aaa-bbb 1", "bbb-aaa 3"]


def test_what_comes_back_empty_is_as_it_was(calls):
    assert back_translation.translate(["x hsinav", "two"], "apertium:bbb-aaa")[1] == "two".upper()
    assert back_translation.translate(["hsinav"], "apertium:bbb-aaa") == ["hsinav"]


PARTS = ("cat", "<user>", "#tag", "@you", "emoji_15", "<num>", ".", "'", "i", "don", "t", "ünï", "[", "\\", "\x00", "\n")


@given(st.lists(st.sampled_from(PARTS), max_size=40))
@example(["#tag", "'", "t"])
@settings(max_examples=60, deadline=None)
def test_marked_words_return_at_their_places_through_any_translator_that_hands_on_what_it_does_not_know(words):
    text = " ".join(words)
    sent, kept = back_translation._guard(text)
    assert "\n" not in sent and not back_translation.KEPT.search(sent)
    back = back_translation._restored(sent.upper(), kept)
    assert back_translation.KEPT.findall(back) == back_translation.KEPT.findall(text) == kept
    if kept:
        assert back_translation._restored(back_translation.STAND_IN.sub("", sent, count=1), kept) == ""
        assert back_translation._restored(f"{sent} qxaaxq", kept) == ""


def test_a_text_that_lost_a_marked_word_stays_as_it_is(legs):
    legs(lambda text: text.replace("qxabxq", ""), lambda text: text.replace("cat", "tom"))
    assert back_translation.translate(["cat <a>", "cat <a> <b>"], "any") == ["tom <a>", "cat <a> <b>"]


def test_translators_see_texts_as_people_write_them(legs):
    asked = legs(lambda text: text)
    back_translation.translate(["i don ' t know , do i ? ' no ' said <user> . . . # lol"], "any")
    assert asked == ["I don't know, do I? ' no ' said qxaaxq... # lol"]


def test_a_killed_run_goes_on_where_it_was(legs, tmp_path, monkeypatch):
    monkeypatch.setattr(back_translation, "BATCH", 2)
    texts, cache = [f"text {number} “ü”" for number in range(7)], tmp_path / "deep" / "back.jsonl"

    def dies(text):
        if "4" in text:
            raise KeyboardInterrupt
        return text[::-1]

    legs(dies)
    with pytest.raises(KeyboardInterrupt):
        back_translation.translate(texts, "any", cache=cache)
    with cache.open("a") as file:
        file.write('{"route": "any", "text": "text 5 “ü”", "ba')  # a line that was being written
    asked = legs(lambda text: text[::-1])
    assert back_translation.translate(texts, "any", cache=cache) == [text[::-1] for text in texts]
    assert asked == texts[4:]
    assert [json.loads(line)["text"] for line in cache.read_text().splitlines()] == texts
    again = legs(lambda text: "not asked")
    assert back_translation.translate(texts[::-1], "any", cache=cache) == [text[::-1] for text in texts[::-1]] and again == []
    assert back_translation.translate(texts[:1], "another", cache=cache) == ["not asked"], "another route's translations are its own"


def test_a_whole_cache_needs_neither_program_nor_permission(legs, tmp_path, monkeypatch):
    legs(str.upper)
    cache = tmp_path / "back.jsonl"
    back_translation.translate(["cat"], ROUTE, cache=cache)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(back_translation, "_memory", None)
    assert back_translation.translate(["cat"], ROUTE, cache=cache) == ["CAT"]


@pytest.mark.parametrize("line", ["{", "[]", '{"route": "any", "text": "a"}', '{"route": "any", "text": "a", "back": 1}', "\ud800"])
def test_a_damaged_cache_is_named(legs, tmp_path, line):
    asked = legs(str.upper)
    good = '{"route": "any", "text": "cat", "back": "tom"}\n'
    (tmp_path / "back.jsonl").write_bytes((good + line + "\n" + good).encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"back\.jsonl, line 2 is not .*delete that line"):
        back_translation.translate(["dog"], "any", cache=tmp_path / "back.jsonl")
    assert asked == []


def test_a_cache_that_cannot_be_used_is_named(legs, tmp_path):
    legs(str.upper)
    with pytest.raises(UserError, match="cannot read .*name another file"):
        back_translation.translate(["dog"], "any", cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot (read|write) .*name another file"):
        back_translation.translate(["dog"], "any", cache=tmp_path / "file" / "back.jsonl")
    with back_translation._memory(tmp_path / "held"), pytest.raises(UserError, match="another process writes"):
        back_translation.translate(["dog"], "any", cache=tmp_path / "held")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "names no route; expected apertium:.*or hf:"),
        ("google:en-fr", "'google:en-fr' names no route"),
        ("apertium:eng", "names no route"),
        ("hf:", "names no route"),
        ("apertium:xxx-yyy", "no direction 'xxx-yyy', only aaa-bbb, .*apt install apertium-xxx-yyy"),
        ("apertium:fai-led", r"apertium -u fai-led failed \(no luck\)"),
        ("hf:/nowhere/at/all", "/nowhere/at/all has no config.json"),
    ],
)
def test_a_route_that_does_not_work_is_one_line(calls, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        back_translation.translate(["a dog"], spec)
    assert "\n" not in str(caught.value)


def test_a_missing_program_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="not installed; run: apt install apertium apertium-eng-spa"):
        back_translation.translate(["a dog"], ROUTE)


def test_a_program_that_hangs_is_stopped_with_all_that_it_started(calls, tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError, match="took more than 2 s and was stopped"):
        back_translation.translate(["a dog"], "apertium:slo-wer", timeout=2)
    assert time.monotonic() - start < 30
    child = pathlib.Path("/proc") / (tmp_path / "bin" / "child").read_text()
    while time.monotonic() - start < 30 and child.exists() and ") Z" not in (child / "stat").read_text():
        time.sleep(0.05)
    assert not child.exists() or ") Z" in (child / "stat").read_text(), "what it started goes on"


TEXTS = ["the cat sat", "a dog sat here", "<user> likes the dog", "the cat saw xylophones", "a cat", "the dog"]
WORDS = tokenise.fit(["cat sat dog here likes saw tom <user> the a don ' t"], length=5)


def _source(texts: list[str], tokeniser: Any = WORDS) -> ArraySource:
    label = (np.arange(len(texts)) % 2).astype(np.int32)
    inputs = {"caption": tokeniser.encode(texts), "numbers": np.ones((len(texts), 2), np.float32)}
    inputs["caption"][-1] = 0
    marks = {"shortcut": {"caption": inputs["caption"] == 2}}
    return ArraySource(inputs, label, label, {"caption": np.arange(len(texts)) < len(texts) - 1}, regions=marks)


def _dataset(tokeniser: Any = WORDS) -> Dataset:
    return Dataset(
        name="tales",
        features={"caption": tokeniser.feature(), "numbers": Feature("table", (2,), "float32")},
        class_names=("no", "yes"),
        group_names=("no", "yes"),
        splits={"train": _source(TEXTS, tokeniser), "train_randomised": _source(TEXTS[:3], tokeniser), "test": _source(TEXTS, tokeniser)},
        notes="made up",
    )


def test_every_training_text_gets_a_second_version_behind_its_own(legs):
    asked = legs(str.title, lambda text: text.lower().replace("cat", "tom").replace("sat", "don't sit"))
    dataset = _dataset()
    both = back_translation.add(dataset, "caption", "any")
    feature = both.features["caption"]
    assert (
        feature == dataclasses.replace(dataset.features["caption"], shape=(10,), views=2) and both.features["numbers"] == dataset.features["numbers"]
    )
    assert tokenise.of(feature) == WORDS, "a version is decoded as a text is"
    assert len(asked) == 2 * 5, "each distinct text once, the absent one never"
    for name, source in both.splits.items():
        raw, rows = dataset.splits[name], np.array([2, 0, len(source) - 1])
        found = source.load(np.arange(len(source)))
        own, second = np.split(found["inputs"]["caption"], 2, axis=1)
        assert found["inputs"]["caption"].dtype == np.int32
        assert (own == raw.load(np.arange(len(raw)))["inputs"]["caption"]).all(), "the first version is the text itself"
        assert (own == second).all() == (name == "test")
        assert ((second > 0).any(1) == found["present"]["caption"]).all()
        assert (source.label == raw.label).all() and (source.group == raw.group).all()
        assert source.arrays is not None and source.regions is not None and raw.regions is not None
        mask, known = source.regions["shortcut"]["caption"], raw.regions["shortcut"]["caption"]
        assert mask.shape == (len(source), *feature.shape) and mask.dtype == bool
        assert (mask[rows][:, :5] == known[rows]).all() and not mask[rows][:, 5:].any() and (mask[0] == mask[rows][1]).all()
        for part, columns in source.load(rows).items():
            assert set(columns) == set(dataset.features)
            for modality, values in columns.items():
                assert (values == source.arrays[part][modality][rows]).all()
    back = [WORDS.decode(row[5:]) for row in both.splits["train"].load(np.arange(4))["inputs"]["caption"]]
    # don't is in the vocabulary as its parts; sit is not, and the last word does not fit.
    assert back == ["the tom don ' t", "a dog don ' t", "<user> likes the dog", "the tom saw <unk>"]
    assert "caption: 4 of 5 training texts have a second version by any" in both.notes


def test_pieces_of_a_checkpoints_tokeniser_are_translated_as_words(legs, tmp_path):
    pytest.importorskip("transformers", reason="checkpoints' tokenisers are read by transformers: pip install 'cimrl_jax[text]'")
    folder = str(pytest.importorskip("tests.tokenisers").word_pieces(tmp_path))
    pieces = tokenise.Pretrained(folder, 6)
    asked = legs(lambda text: text.replace("cat", "dog"))
    both = back_translation.add(_dataset(pieces), "caption", "any")
    assert "the cat sat" in asked and not any("##" in text or "[" in text for text in asked)
    rows = both.splits["train"].load(np.arange(5))["inputs"]["caption"]
    assert tokenise.of(both.features["caption"]).decode(rows[0, 6:]) == "the dog sat"
    assert (rows[:, 6:][(rows[:, :6] == pieces.encode(["the dog"])).all(1)] == pieces.encode(["the dog"])).all()


def test_what_has_no_texts_is_named(legs):
    legs(str.upper)
    dataset = _dataset()
    for modality in ("numbers", "picture"):
        with pytest.raises(UserError, match=f"'tales' has no texts '{modality}'; its texts are caption"):
            back_translation.add(dataset, modality, "any")
    with pytest.raises(UserError, match="has 2 versions already"):
        back_translation.add(back_translation.add(dataset, "caption", "any"), "caption", "any")


def _versions(rows: int) -> tuple[Feature, jax.Array]:
    """Texts of 5 ids and, behind each, a second version: 3 words of the first half of a vocabulary, 4 of the second."""
    vocabulary = ("<pad>", "<unk>", *(f"w{number}" for number in range(20)))
    rng = np.random.default_rng(0)
    first, second = rng.integers(2, 12, (rows, 5)), rng.integers(12, 22, (rows, 5))
    first[:, 3:], second[:, 4:] = 0, 0
    ids = np.concatenate([first, second], 1).astype(np.int32)
    return Feature("text", (10,), "int32", vocabulary=vocabulary, views=2), jnp.asarray(ids)


def test_views_are_made_of_either_version_evenly_and_each_key_has_its_own():
    feature, ids = _versions(2000)
    still = views.ViewOptions(text=augment_text.Options(0.0, 0.0, 0.0, 0.0))
    perturb = jax.jit(views.make_perturb({"text": feature}, still))
    seen, again, other = (np.asarray(perturb({"text": ids}, jax.random.key(seed))["text"]) for seed in (0, 0, 1))
    own, second = np.split(np.asarray(ids), 2, axis=1)
    swapped = (seen[:, :5] == second).all(1)
    assert (swapped | (seen[:, :5] == own).all(1)).all() and (seen == np.where(swapped[:, None], np.concatenate([second, own], 1), ids)).all()
    assert swapped.mean() == pytest.approx(0.5, abs=0.05)
    assert (seen == again).all() and ((other[:, :5] == second).all(1) != swapped).mean() == pytest.approx(0.5, abs=0.05)


def test_words_of_the_chosen_version_are_edited_and_the_other_is_not():
    feature, ids = _versions(500)
    edits = views.ViewOptions(text=augment_text.Options(0.0, 0.5, 0.5, 1.0))
    seen = np.asarray(jax.jit(views.make_perturb({"text": feature}, edits))({"text": ids}, jax.random.key(0))["text"])
    assert seen.shape == ids.shape and seen.dtype == ids.dtype
    chosen = (seen[:, :5].max(1) >= 12).astype(int)
    whole = np.asarray(ids).reshape(-1, 2, 5)
    rows = np.arange(500)
    assert (seen[:, 5:] == whole[rows, 1 - chosen]).all(), "the version that is not read was edited"
    for row, text in zip(seen[:, :5], whole[rows, chosen], strict=True):
        assert set(row) <= set(text) | {0} and ((row[:-1] > 0) | (row[1:] == 0)).all()
    assert (seen[:, :5] != whole[rows, chosen]).any(1).mean() > 0.5


@pytest.mark.parametrize("encoder", ["text_transformer", "hf_bert"])
def test_without_a_key_the_second_version_is_never_seen(encoder):
    feature, ids = _versions(3)
    single = dataclasses.replace(feature, shape=(5,), views=1)
    section = {"text": {"encoder": encoder, **cases.OPTIONS.get(encoder, {})}}
    model, plain = (cases.make({"text": own}, section) for own in (feature, single))
    assert model.slots == plain.slots, "positions and slots are those of one version"
    key, present = jax.random.key(0), {"text": jnp.ones(3, bool)}
    shapes, others = (jax.tree.map(lambda x: x.shape, jax.eval_shape(own.init, key)) for own in (model, plain))
    assert shapes == others
    params = model.init(key)
    expected = plain.embed(params, {"text": ids[:, :5]}, present)
    for second in (ids[:, 5:], jnp.zeros((3, 5), jnp.int32)):
        tiny.assert_equal(model.embed(params, {"text": jnp.concatenate([ids[:, :5], second], 1)}, present), expected)
    marks = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 10)).astype(bool))
    tiny.assert_equal(model.regions({"text": marks}), plain.regions({"text": marks[:, :5]}))


def test_a_training_step_learns_from_both_versions():
    feature, ids = _versions(16)
    perturb = views.make_perturb({"text": feature}, views.ViewOptions(text=augment_text.Options(0.0, 0.0, 0.0, 0.0)))
    model = cases.make({"text": feature}, {"text": {"depth": 0}}, fusion_layers=1, causal_layers=0)._replace(perturb=perturb)
    label = (np.arange(16) % 3).astype(np.int32)
    source = ArraySource({"text": np.asarray(ids)}, label, label)
    program = tiny.program(tiny.method("erm"), source, classes=3, model=model, seeds=(0,))
    state = jax.tree.map(lambda x: x[0], tiny.members(program))
    fields = {"label": label, "group": label, "index": np.arange(16, dtype=np.int32), "weight": np.ones(16, np.float32)}
    batch = Batch({"text": ids}, {"text": jnp.ones(16, bool)}, **{name: jnp.asarray(value) for name, value in fields.items()})
    after, metrics = jax.jit(fused.make_step(model, program.method.stages[0], program.stage_optimizer(0), augment=True))(state, batch)
    assert all(np.isfinite(value).all() for value in tiny.arrays(metrics)) and float(metrics["gradient_norm"]) > 0
    moved = np.abs(np.asarray(after.params["model"]["encoders_text"]["words"] - state.params["model"]["encoders_text"]["words"])).max(1) > 1e-4
    assert moved[2:12].any() and moved[12:].any(), "words of the one version, and of the other"


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """Two Marian models with random weights, as `save_pretrained` writes them."""
    torch = pytest.importorskip("torch", reason="Hugging Face models run on torch: pip install torch")
    transformers = pytest.importorskip("transformers", reason="pip install 'cimrl_jax[text]'")
    tokenizers = pytest.importorskip("tokenizers")
    folders = []
    for seed in (2, 3):
        folder = tmp_path_factory.mktemp("marian")
        words = ["</s>", "<unk>", "<pad>", "the", "cat", "dog", "sat", "here", "saw", "a", "."]
        whole = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
        whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        whole.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 0)])
        transformers.PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>", unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
        torch.manual_seed(seed)
        sizes = {f"{part}_{name}": 8 if name != "layers" else 1 for part in ("encoder", "decoder") for name in ("ffn_dim", "layers")}
        config = transformers.MarianConfig(
            **(sizes | {"encoder_attention_heads": 2, "decoder_attention_heads": 2}),
            vocab_size=len(words), d_model=8, max_position_embeddings=12, pad_token_id=2, eos_token_id=0, decoder_start_token_id=2,
            forced_eos_token_id=0, num_beams=2, init_std=1.0,
        )  # fmt: skip
        transformers.MarianMTModel(config).save_pretrained(folder, safe_serialization=True)
        folders.append(folder)
    return folders


def test_models_translate_as_transformers_does_text_by_text(marian):
    import torch
    import transformers

    texts = ["the cat sat here .", "a dog", "the dog saw the cat ."]
    found = back_translation.translate(texts, f"hf:{marian[0]},{marian[1]}")
    expected = []
    for text in texts:
        sent = re.sub(r" \.$", ".", text)
        for folder in marian:
            reader = transformers.AutoTokenizer.from_pretrained(folder)
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
            ids = reader([sent], return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                made = model.generate(input_ids=ids, do_sample=False, max_new_tokens=11, max_length=None)
            sent = reader.batch_decode(made, skip_special_tokens=True)[0]
        expected.append(sent or text)
    assert found == expected and found != texts


def test_another_model_under_the_same_name_is_another_route(marian, tmp_path):
    shutil.copytree(marian[0], tmp_path / "model")
    (first, _), (again, _) = (translators.route(f"hf:{folder}", 1.0) for folder in (marian[0], tmp_path / "model"))
    shutil.copy(marian[1] / "model.safetensors", tmp_path / "model")
    assert first == again != translators.route(f"hf:{tmp_path / 'model'}", 1.0)[0]


def test_a_model_that_cannot_be_read_is_named(marian, tmp_path):
    shutil.copytree(marian[0], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors, and weights in other files are not read"):
        back_translation.translate(["a dog"], f"hf:{tmp_path / 'model'}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="not a sequence-to-sequence model that can be read") as caught:
        back_translation.translate(["a dog"], f"hf:{tmp_path / 'model'}")
    assert "\n" not in str(caught.value)


@real
def test_apertium_gives_each_text_its_own_translation():
    texts = ["the big", "dog sleeps in the house <user> # emoji_15 100 % [ x ] { y } ^z$ \\ * ~ é 🎉", "i don ' t know"]
    together = back_translation.translate(texts, ROUTE)
    assert together == [back_translation.translate([text], ROUTE)[0] for text in texts]
    assert "the big" in together[0].lower() and "dog" in together[1].lower() and "not" in together[2].lower()
    assert "<user>" in together[1] and "emoji_15" in together[1] and "é 🎉" in together[1]


@real
def test_apertium_says_the_same_in_other_words():
    dataset = _dataset()
    both = back_translation.add(dataset, "caption", ROUTE)
    back = [WORDS.decode(row[5:]) for row in both.splits["train"].load(np.arange(5))["inputs"]["caption"]]
    assert back[0].startswith("the cat") and "dog" in back[1] and back[2].startswith("<user>")
