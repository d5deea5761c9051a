"""The gallery: pictures survive, the chosen slots are outlined where they lie, the heat is where the evidence is."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from cimrl_jax.errors import UserError
from cimrl_jax.report import gallery


def _pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (4, 3, 2), (5, 7, 3), (6, 2, 4), (1, 1, 3)])
def test_a_png_holds_its_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(_pixels(gallery.encode_png(pixels)), pixels[..., 0] if shape[2:] == (1,) else pixels)


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 3)), np.zeros((2, 2, 5), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 2, 3), np.uint8)])
def test_other_arrays_are_refused(pixels):
    with pytest.raises(UserError, match="expected uint8"):
        gallery.encode_png(pixels)


def test_entries_survive_the_file(sample, tmp_path):
    entries = sample.entries(2)
    del entries[1]["pictures"], entries[1]["edited_pictures"]
    gallery.save(tmp_path / "gallery.json", entries)
    first, second = gallery.read(tmp_path / "gallery.json")
    np.testing.assert_array_equal(_pixels(first["edited_pictures"]["image"]), entries[0]["edited_pictures"]["image"])
    np.testing.assert_allclose(first["evidence"]["image"], entries[0]["evidence"]["image"])
    assert second["pictures"] == {} and second["words"] == entries[1]["words"] and first["grid"] == {"image": [7, 7]}
    assert gallery.read(tmp_path / "none.json") == []


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_broken_gallery_is_refused(tmp_path, text):
    (tmp_path / "gallery.json").write_text(text)
    with pytest.raises(UserError, match="delete it"):
        gallery.read(tmp_path / "gallery.json")
    with pytest.raises(UserError, match="not a base64 PNG"):
        gallery.card({"pictures": {"image": "<script>"}})


def test_a_card_shows_every_stage_of_the_example(sample, tmp_path):
    gallery.save(tmp_path / "gallery.json", sample.entries(1))
    card = gallery.card(gallery.read(tmp_path / "gallery.json")[0])
    assert [panel.title for panel in card.panels] == ["original", "evidence", "chosen", "counterfactual", "table"]
    assert dict(card.facts) | {"predicted": "one", "after the edit": "zero"} == dict(card.facts) and not card.right
    [text] = card.texts
    assert [word.text for word in text.words if word.chosen] == ["bright", "red"] and not text.name
    assert [word.text for word in text.edited if word.changed] == ["pale", "green"]
    styles = {word.text: word.style for word in text.words}
    assert styles["red"] == "background: rgb(213, 94, 0, 0.60)" and styles["ink"].startswith("background: rgb(0, 114, 178, 0.18") and not styles["in"]


def test_the_outline_is_the_border_of_the_chosen_region():
    entry = {"pictures": {"pixels": gallery.encode_png(np.zeros((8, 8, 3), np.uint8))}, "grid": {"pixels": [4, 4]}, "chosen": {"pixels": [0.0] * 16}}
    entry["chosen"]["pixels"][5:7] = [1.0, 0.6]  # two neighbours in the second line: x 2..6, y 2..4
    entry["chosen"]["pixels"][15] = 0.4
    panel = gallery.card(entry).panels[-1]
    sides = {tuple(side) for side in re.findall(r"M(\d+) (\d+)([hv])(\d+)", panel.outline)}
    border = {("2", "2", "h", "2"), ("4", "2", "h", "2"), ("2", "4", "h", "2"), ("4", "4", "h", "2"), ("2", "2", "v", "2"), ("6", "2", "v", "2")}
    assert sides == border and panel.alt == "the example with 2 chosen slots outlined"


def test_the_heat_is_strongest_and_signed_where_the_evidence_is():
    evidence = [0.0, 0.5, -1.0, None, 0.25, 0.0]
    entry = {"pictures": {"image": gallery.encode_png(np.zeros((2, 3, 3), np.uint8))}, "grid": {"image": (2, 3)}, "evidence": {"image": evidence}}
    heat = _pixels(gallery.card(entry).panels[-1].layers[-1]).reshape(6, 4)
    assert heat[:, 3].argsort().tolist()[-3:] == [4, 1, 2] and (heat[[0, 3, 5], 3] == 0).all()
    assert tuple(heat[1, :3]) == gallery.TOWARDS and tuple(heat[2, :3]) == gallery.AGAINST


def test_slots_without_a_picture_or_a_grid_are_shown_in_lines():
    card = gallery.card({"evidence": {"slots": [1.0] * 40}, "chosen": {"slots": [0] * 39 + [1]}})
    assert [(panel.title, panel.width // gallery.CELL, panel.height // gallery.CELL) for panel in card.panels] == [("slots", 32, 2)]
    assert "40 slots of slots" in card.panels[0].alt and card.texts == [] and card.bars == []


def test_features_are_called_so_and_their_evidence_lies_on_the_raw_picture(sample, tmp_path):
    entry = sample.entries(1)[0] | {"edited_pictures": {}, "edited_words": {}, "features": {"image": 0.254, "text": 0.0}}
    gallery.save(tmp_path / "gallery.json", [entry])
    card = gallery.card(gallery.read(tmp_path / "gallery.json")[0])
    assert [panel.title for panel in card.panels] == ["original", "evidence", "chosen", "table"] and not card.texts[0].edited
    facts = dict(card.facts)
    assert facts["features of image"] == "evidence is that of a frozen encoder's tokens, 25% of it where it has no place"
    assert facts["features of text"] == "evidence is that of a frozen encoder's tokens"
    assert not any(name.startswith("features") for name, _ in gallery.card({"label": "zero"}).facts)


def test_every_modality_is_shown_by_name_with_its_own_evidence_and_counterfactual(sample, tmp_path):
    entry = sample.entries(1)[0]
    picture = entry["pictures"]["image"]
    entry["pictures"]["map"], entry["grid"]["map"], entry["evidence"]["map"] = picture[:14], (1, 2), [0.0, 1.0]
    entry["words"]["tags"], entry["evidence"]["tags"], entry["chosen"]["tags"] = ["dog", "sky"], [0.0, -1.0], [0, 1]
    gallery.save(tmp_path / "gallery.json", [entry])
    card = gallery.card(gallery.read(tmp_path / "gallery.json")[0])
    own = ["image: original", "image: evidence", "image: chosen", "image: counterfactual"]
    assert [panel.title for panel in card.panels] == [*own, "map: original", "map: evidence", "table"]
    heat = _pixels(card.panels[5].layers[-1])
    assert heat.shape[:2] == (1, 2) and heat[0, :, 3].tolist() == [0, round(255 * 0.85)] and card.panels[5].alt.startswith("map: ")
    assert [text.name for text in card.texts] == ["text", "tags"] and not card.texts[1].edited
    assert [word.text for word in card.texts[1].words if word.chosen] == ["sky"]


def test_a_gallery_of_one_picture_and_one_text_is_still_read(sample, tmp_path):
    """As files had it before there could be several."""
    entry = sample.entries(1)[0]
    gallery.save(tmp_path / "gallery.json", [entry])
    [now] = gallery.read(tmp_path / "gallery.json")
    older = {key: value for key, value in now.items() if key not in ("pictures", "edited_pictures")}
    older |= {"words": now["words"]["text"], "edited_words": None, "image": now["pictures"]["image"], "edited_image": now["edited_pictures"]["image"]}
    (tmp_path / "gallery.json").write_text(json.dumps([older]))
    [read] = gallery.read(tmp_path / "gallery.json")
    assert gallery.card(read) == gallery.card({**now, "edited_words": {}})


def test_the_split_is_not_told_twice():
    assert [name for name, _ in gallery.card({"id": "test/3", "split": "test"}).facts] == ["id"]
    assert [name for name, _ in gallery.card({"id": 3, "split": "test"}).facts] == ["id", "split"]


def test_effects_gates_and_quality_are_bars_to_scale():
    effects = {"TE": 4.0, "NDE text": -1.0, "TIE text": 0.0, "NDE image": None}
    card = gallery.card({"predicted": "zero", "effects": effects, "gates": {"none": 0.25, "all": 0.75}, "quality": {"text": 1.5}})
    assert [(part.title, part.signed) for part in card.bars] == [
        ("effects on “zero”, logits", True), ("the router's gates", False), ("quality of the counterfactual", False)
    ]  # fmt: skip
    total, direct, indirect, unknown = card.bars[0].bars
    assert (total.kind, total.style, total.number) == ("towards", "left: 50.0%; width: 50.0%", "+4.00")
    assert (direct.kind, direct.style, direct.number) == ("against", "left: 37.5%; width: 12.5%", "−1.00")
    assert indirect.style.endswith("width: 0.0%") and (unknown.style, unknown.number) == ("", "–")
    assert [(bar.name, bar.kind, bar.style) for bar in card.bars[1].bars] == [
        ("none", "share", "left: 0; width: 25.0%"), ("all", "highest", "left: 0; width: 75.0%")
    ]  # fmt: skip
    assert card.bars[2].bars[0].style == "left: 0; width: 100.0%" and card.bars[2].bars[0].number == "1.50"  # what cannot be stays on its line
    assert gallery.card({"effects": {"TE": 0.0}}).bars[0].bars[0].style == "left: 50.0%; width: 0.0%"
