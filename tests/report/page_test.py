"""The page: whole, self-contained, deaf to what users write into names, and made from whatever was measured."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

import cimrl_jax
from cimrl_jax.errors import UserError
from cimrl_jax.report import gallery, page, tables
from cimrl_jax.report.canvas import dashes, look, name_points, new_figure, style
from cimrl_jax.report.figures import figures
from cimrl_jax.report.verdict import verdict

ROOT = pathlib.Path(cimrl_jax.__file__).parents[1]
EVIL = "<script>alert('x')</script>\" onload=\"y & $a$ {{ 7 * 7 }} --> ]]>"
SECTIONS = [
    "verdict",
    "summary",
    "seeds",
    "cost",
    "selection",
    "settings",
    "groups",
    "curves",
    "identification",
    "gallery",
    "data",
    "setup",
    "remake",
]
MEDIATED = [*SECTIONS[:6], "modes", "pairs", *SECTIONS[6:9], "routing", *SECTIONS[9:]]
BARE = [name for name in SECTIONS if name not in ("selection", "settings", "data")]


class Reader(html.parser.HTMLParser):
    """Collects tags, ids of sections and visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.depth: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def sections(self):
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


@pytest.fixture
def whole(sample, tmp_path) -> str:
    gallery.save(tmp_path / "gallery.json", sample.entries(2))
    return page.render(sample.results(warnings=["take care"], settings=sample.settings()), sample.metrics(), gallery.read(tmp_path / "gallery.json"))


def test_every_section_is_there_in_reading_order(whole):
    read = Reader(whole)
    assert read.sections() == SECTIONS
    labels = [attributes.get("aria-label") or "" for _, attributes in read.tags if attributes.get("role") == "img"]
    assert len(labels) == 5 + 2 * 5 and all(labels)  # gap, seeds, tradeoff, groups, curves; five panels an example
    for word in (
        "coloured digits",
        "take care",
        "79 %",
        "worst-class accuracy",
        "hit rate",
        "counterfactual",
        "3.00×",
        "depth: 2",
        "report --workdir",
        "Labels used",
        "oracle (reads the test groups)",
        "cimrl: 3 settings, chosen method.cimrl.rate=1",
    ):
        assert word in re.sub(r"\s+", " ", read.text), word


@pytest.fixture
def with_mediation(sample, tmp_path) -> str:
    entries = [entry | {"effects": {"TE": 2.0, "NDE text": -1.0}, "gates": {"none": 0.2}, "quality": {"text": 0.9}} for entry in sample.entries(2)]
    gallery.save(tmp_path / "gallery.json", entries)
    return page.render(sample.results(sample.mediated(), settings=sample.settings()), sample.metrics(), gallery.read(tmp_path / "gallery.json"))


def test_what_mediation_tells_is_on_the_page(with_mediation, sample):
    read = Reader(with_mediation)
    assert read.sections() == MEDIATED
    text = re.sub(r"\s+", " ", read.text)
    cell = sample.results(sample.mediated()).mode_cell("cimrl", "uniform", "test_flipped", "worst_group_accuracy")
    assert "tie default" in text and "uniform default" not in text and f"{100 * cell.mean:.1f} ± {100 * cell.std:.1f}" in text
    for word in (
        "test and test_flipped",
        "both right",
        "top in 90.0",
        "test_balanced, by groups.",
        "NDE text−1.00",
        "the router's gates none0.20",
        "TE is the",
    ):
        assert word in text, word
    bars = [attributes for tag, attributes in read.tags if tag == "table" and "bars" in (attributes.get("class") or "")]
    assert [attributes["class"] for attributes in bars] == 2 * ["bars signed", "bars", "bars"]
    open_tags = [tag for tag, _ in read.tags if tag in ("table", "section", "article", "details")]
    assert all(open_tags.count(tag) == with_mediation.count(f"</{tag}>") for tag in open_tags)


@pytest.mark.parametrize("mediation", [False, True])
def test_nothing_is_loaded_from_anywhere(whole, with_mediation, mediation):
    whole = with_mediation if mediation else whole
    read = Reader(whole)
    loads = [value for _, attributes in read.tags for name, value in attributes.items() if name in ("src", "href", "xlink:href", "srcset", "data")]
    assert loads and all(value and value.startswith(("data:image/png;base64,", "#")) for value in loads)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in read.tags}
    assert "http" not in whole.replace("http-equiv", "") and "@import" not in whole
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", whole))


def test_ids_are_unique_and_every_reference_is_met(whole):
    read = Reader(whole)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    uses = {value[1:] for _, attributes in read.tags for name, value in attributes.items() if name.endswith("href") and value and value[0] == "#"}
    assert uses and uses | set(re.findall(r"url\(#([^)]*)\)", whole)) <= set(ids)


def _poison(value: Any, key: str = "") -> Any:
    """Every text that a user may have written, poisoned; what the code itself looks up is left."""
    if isinstance(value, dict):
        kept = {"test", "test_balanced", "test_flipped"}
        named = key in ("setting", "groups", "identification", "config", "environment", "hyper", "gap_closed")
        named |= key in ("modes", "gates", "top", "effects", "quality")
        return {(EVIL + name if named and name not in kept else name): _poison(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_poison(item, key) for item in value]
    return EVIL + value if isinstance(value, str) and key not in ("image", "edited_image", "split", "metric") else value


def test_what_users_write_is_text(sample, tmp_path):
    gallery.save(tmp_path / "gallery.json", sample.entries(1))
    entry = _poison(gallery.read(tmp_path / "gallery.json")[0] | {"effects": {"TE": 1.0}, "gates": {"none": 1.0}, "quality": {"text": 1.0}})
    entry["split"] = EVIL
    lines = _poison(sample.mediated())
    config = {"name": EVIL, EVIL: EVIL, "data": {"name": EVIL}, "evaluate": {"level": 0.9}}
    metrics = _poison(sample.metrics()) + [{"method": EVIL, "seed": EVIL, "step": 1, "loss": 0.1}]
    gaps = {f"{EVIL}cimrl": {"mean": 0.5, "ci95": [0.4, 0.6], "n": 5}}
    results = sample.results(
        lines,
        config=config,
        environment={EVIL: EVIL, "cimrl_jax": EVIL},
        gap_closed=gaps,
        warnings=[EVIL],
        settings=_poison(sample.settings()),
        data=_poison(sample.results().data),
    )
    text = page.render(results, metrics, [entry])
    read = Reader(text)
    assert not [tag for tag, attributes in read.tags if tag == "script" or "onload" in attributes]
    assert "<script" not in text and read.sections() == MEDIATED
    assert EVIL in read.text and "{{ 7 * 7 }}" in read.text
    assert read.text.count("<script>alert('x')</script>") > 30


def test_the_data_section_counts_and_lists_what_was_left_out(whole):
    text = " ".join(Reader(whole).text.split())
    assert "made of digits" in text and "all rows5" in text and "high on red2" in text
    assert "1 rows could not be used and were left outrows.csv, line 7: missing file" in text


def test_a_page_comes_from_whatever_was_measured(sample):
    lines = sample.runs(methods=("cimrl",), seeds=(0,))
    for run in lines:
        run["identification"] = None
        run["train"] = {}
        run["selected_by"] = None
        run["selection"] = None
        for split in run["splits"].values():
            split.update(dict.fromkeys(split), groups={})
    read = Reader(
        page.render(sample.results(lines, gap_closed={"cimrl": None}, config={}, data={}), [{"method": "cimrl", "step": None, "loss": None}], [])
    )
    assert read.sections() == BARE and "<svg" not in read.text
    assert not [tag for tag, _ in read.tags if tag == "svg"]
    for told in (
        "No group labels were at hand",
        "No worst-group accuracy",
        "No metrics were logged",
        "No examples were saved",
        "ERM was not trained",
    ):
        assert told in read.text
    bare = sample.results([], summary=[], gap_closed={}, data={})
    assert Reader(page.render(bare, [], [])).sections() == BARE


def test_a_page_is_made_from_the_workdir_alone_and_without_jax(sample, tmp_path):
    sample.results(settings=sample.settings()).save(tmp_path / "results.json")
    gallery.save(tmp_path / "gallery.json", sample.entries(1))
    lines = [json.dumps(row) for row in sample.metrics()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"method": "er')
    program = "import sys; from cimrl_jax.report.page import write_page; print(write_page(sys.argv[1])); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == str(tmp_path / "report.html")
    assert Reader((tmp_path / "report.html").read_text(encoding="utf-8")).sections() == SECTIONS


def test_broken_lines_of_the_metrics_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n{"step": 2, "lo{"step": 2}\n[3]\n\n{"step": 4}\n{"step": 5, "na\xc3')
    assert page.read_metrics(path) == [{"step": 1, "loss": None}, {"step": 4}]
    assert page.read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(sample, monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'cimrl_jax\[report\]'"):
        page.render(sample.results(), [], [])


def test_the_verdict_follows_the_numbers(sample):
    told = " ".join(verdict(sample.results())).replace("\xa0", " ")
    assert "ERM fell for the shortcut" in told and "cimrl closes 79 % of that gap (95 % interval 73 to 85 %)" in told and "no group label" in told
    worse = verdict(sample.results(gap_closed={"cimrl": {"mean": -0.2, "ci95": [-0.3, -0.1]}}))
    assert "does worse than ERM, by 20 % of that gap (95 % interval 10 to 30 %)" in " ".join(worse).replace("\xa0", " ")
    lines = sample.runs()
    for run in lines:
        run["splits"]["test_flipped"]["accuracy"] = run["splits"]["test"]["accuracy"]
    assert "did not fall" in verdict(sample.results(lines))[0]
    doubtful = verdict(sample.results(gap_closed={"cimrl": {"mean": 0.2, "ci95": [-0.1, 0.5]}}))
    assert "may be chance" in " ".join(doubtful) and "may be chance" not in told


def test_nothing_is_said_of_a_ceiling_that_was_not_trained(sample):
    for methods in (("erm", "cimrl", "ceiling"), ("erm", "cimrl")):
        found = sample.results(sample.runs(methods=methods), gap_closed={"cimrl": None})
        drawn = figures(found, [])
        told = "".join(verdict(found)) + drawn["groups"].caption + drawn["seeds"].caption
        assert ("ceiling" in told) == ("share of a gap" in told) == ("ceiling" in methods) and "Dotted line: ERM." in told


def test_figures_are_drawn_from_the_numbers(sample):
    lines = sample.runs()
    for run in lines:
        run["splits"]["test"]["bins"] = [{"confidence": 0.5, "accuracy": 0.4, "n": 10}, {"confidence": None, "accuracy": None, "n": 0}]
    drawn = figures(sample.results(lines), sample.metrics())
    assert list(drawn) == ["groups", "seeds", "gap", "tradeoff", "reliability", "curves"]
    cell = sample.results(lines).cell("erm", "test_balanced", "group_accuracy/zero, red")
    assert f"erm: worst zero, red, {100 * cell.mean:.1f}." in drawn["groups"].alt
    assert "var(--series-0, #0072b2)" in drawn["gap"].svg and "var(--ink, #1b1f24)" in drawn["gap"].svg
    again = figures(sample.results(lines), sample.metrics())
    assert {name: picture.svg for name, picture in drawn.items()} == {name: picture.svg for name, picture in again.items()}


def test_a_name_is_drawn_as_it_is_written(sample):
    lines = sample.runs()
    for run in lines:
        run["method"] = {"cimrl": "$x_1$ <b>&"}.get(run["method"], run["method"])
    drawn = figures(sample.results(lines), [])
    assert "$x_1$ &lt;b&gt;&amp;" in drawn["groups"].svg and "$x_1$ &lt;b&gt;&amp;" in drawn["seeds"].svg and "<b>" not in drawn["seeds"].svg


def test_the_part_of_a_groups_name_that_tells_it_apart_is_not_cut_off(sample):
    names = tuple(f"label={label}, attribute={attribute}" for label in ("literal", "sarcastic") for attribute in ("no #", "#"))
    lines = sample.runs()
    for run in lines:
        run["splits"] = {"test_balanced": sample.split(0.1, names)}
    drawn = figures(sample.results(lines), [])["groups"].svg
    assert all(drawn.count(f">{part}</text>") + drawn.count(f">{part}</tspan>") == 2 for part in ("label=literal", "attribute=no #", "attribute=#"))


def test_a_method_of_several_modalities_is_named_once_among_what_was_identified(whole):
    section = whole[whole.index('id="identification"') : whole.index('id="gallery"')]
    assert section.count(">cimrl</th>") == 1 and 'rowspan="2"' in section and "<td>image</td>" in section and "<td>text</td>" in section


def test_what_edits_leave_is_shown_where_it_was_measured(sample):
    lines = sample.runs()
    assert 'id="edits"' not in page.render(sample.results(lines), [], [])
    for run in lines:
        run["identification"] = {"image": {"probe": {name: k / 10 for k, name in enumerate(tables.PROBED)}}}
    shown = page.render(sample.results(lines), [], [])
    section = shown[shown.index('id="edits"') : shown.index('id="gallery"')]
    assert [section.count(f">{k}0.0 ± 0.0</td>") for k in range(1, len(tables.PROBED))] == [len({run["method"] for run in lines})] * (
        len(tables.PROBED) - 1
    )


def test_of_many_groups_the_hardest_are_shown(sample):
    names = tuple(f"group {number:02d}" for number in range(20))
    lines = sample.runs()
    for run in lines:
        run["splits"] = {"test_balanced": sample.split(0.1, names)}
        for number, name in enumerate(names):
            run["splits"]["test_balanced"]["groups"][name]["accuracy"] = 0.9 - number / 100
    drawn = figures(sample.results(lines), [])["groups"]
    assert "12 hardest of 20" in drawn.caption and "group 19" in drawn.svg and "group 08" in drawn.svg and "group 07" not in drawn.svg


def test_a_step_told_twice_counts_once(sample):
    rows = [{"method": "erm", "seed": 0, "step": 1, "loss": 1.0}, {"method": "erm", "seed": 0, "step": 2, "loss": 0.5}]
    results = sample.results()
    assert figures(results, rows)["curves"].svg == figures(results, [{**rows[0], "loss": 7.0}, *rows])["curves"].svg


def test_many_methods_stay_readable(sample):
    results = sample.results(sample.many(), gap_closed={}, settings=sample.settings(tuple(range(page.FEW + 1))))
    read = Reader(page.render(results, [], []))
    assert [dict(attributes) for tag, attributes in read.tags if tag == "details"][:2] == [{}, {}]  # cost and settings are folded
    drawn = figures(results, [])
    assert drawn["groups"].alt.startswith("Tiles") and drawn["groups"].svg.count("<path") >= 4 * 20
    looks = {look(results.methods(), method) for method in results.methods()[1:-1]}
    assert len(looks) == 18 and len({str(dashes(method, results.methods())) for method in results.methods()}) == 5
    told = " ".join(verdict(results))
    assert "Of 18 methods, the 3 with the highest worst group" in told and "dfr" in told and "irm" not in told


def test_methods_stand_in_the_order_of_their_worst_group(sample):
    results = sample.results(sample.many())
    alt = figures(results, [])["seeds"].alt
    means = {method: results.cell(method, "test_balanced", "worst_group_accuracy").mean for method in results.methods()}
    ranked = sorted(means, key=lambda method: -means[method])
    assert re.findall(r"(\S+) on test_balanced: (\S+)", alt) == [(method, f"{100 * means[method]:.1f}") for method in ranked]


def test_without_a_balanced_split_the_test_split_is_drawn(sample):
    lines = sample.runs()
    for run in lines:
        run["splits"] = {"test": run["splits"]["test"]}
    drawn = figures(sample.results(lines), [])
    assert "cimrl on test: " in drawn["seeds"].alt and "worst group on test (%)" in drawn["tradeoff"].svg


def test_cost_is_drawn_against_the_worst_group(sample):
    results = sample.results()
    mean = results.cell("cimrl", "test_balanced", "worst_group_accuracy").mean
    drawn = figures(results, [])["tradeoff"]
    assert f"cimrl {100 * mean:.1f} percent at 3.00×" in drawn.alt and ">cimrl</text>" in drawn.svg
    lines = sample.runs()
    for run in lines:
        run["train"]["seconds"] *= 100 if run["method"] == "cimrl" else 1
    far = figures(sample.results(lines), [])["tradeoff"].svg
    assert all(f">{tick}×</text>" in far for tick in (1, 2, 5, 10, 20, 50, 100, 200))  # so far off, on a logarithmic axis
    assert "tradeoff" not in figures(sample.results(sample.runs(methods=("cimrl", "ceiling"))), [])


def test_names_beside_points_do_not_cover_one_another():
    from matplotlib.text import Text

    with style():
        figure, (axes,) = new_figure(height=3.0)
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 100)
        name_points(axes, [(5.0, 50.0 + step, "a name") for step in range(6)])
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line that leads there
    assert len(boxes) == 6 and not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


def test_curves_do_not_mix_the_settings_of_a_sweep(sample):
    lines = sample.runs(methods=("erm", "cimrl"))
    for run in lines:
        program, first = {"erm": ("erm", 0), "cimrl": ("cimrl-2", 5)}[run["method"]]
        run |= {"program": program, "member": first + run["seed"]}
    chosen = [{"method": "cimrl-2", "seed": seed, "member": 5 + seed, "step": step, "loss": (1 + seed) / step} for seed in (0, 1) for step in (1, 2)]
    plain = [{"method": "erm", "seed": 0, "step": step, "loss": 1.0} for step in (1, 2)]
    others = [{**row, "member": row["seed"], "loss": 7.0} for row in chosen] + [{**row, "method": "cimrl-1", "loss": 8.0} for row in chosen]
    results = sample.results(lines)
    drawn = figures(results, plain + chosen)["curves"]
    assert figures(results, plain + others[:4] + chosen + others)["curves"] == drawn and drawn.alt.endswith("for erm, cimrl.")
    assert figures(results, plain + chosen[:2])["curves"].svg != drawn.svg
    for run in lines:
        del run["program"], run["member"]
    older = figures(sample.results(lines), plain + chosen)["curves"]
    assert older.alt.endswith("for erm, cimrl, cimrl-2.")
