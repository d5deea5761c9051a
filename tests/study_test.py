"""A study: its table holds the runs' own numbers, folds are pooled by their counts, what is done is not done again, and mistakes are one line."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import yaml

import cimrl_jax
from cimrl_jax import experiment, metrics, study
from cimrl_jax.config import plain
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import robustness
from cimrl_jax.main import main
from cimrl_jax.report import comparison, study_page
from cimrl_jax.report.comparison import Column, Comparison, pool
from cimrl_jax.report.results import Results, summarise
from cimrl_jax.report.study_text import markdown
from cimrl_jax.train import loop
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
WORST = "worst_group_accuracy"
EVIL = '<script>alert("x")</script> | **a** `b` $c$'
BASE = {**tiny.STUDY, "methods": ("erm",), "report": {"html": False, "examples": 0}}
BASE.pop("name")
STUDY: dict[str, Any] = {
    "base": BASE,
    "runs": {
        "plain": {"data": {"correlation": 0.9}},
        "folds/0": {"data": {"data_seed": 1}},
        "folds/1": {"data": {"data_seed": 2, "test": 40}},
        "absent": {"data": {"path": "/nowhere"}, "report": {"html": True}},  # this data set reads no files
    },
    "pool": {"both folds": ["folds/0", "folds/1"]},
    "plots": {"correlation": {"0.9": "plain", "0.95": "both folds"}},
    "table": ["plain", "both folds", "absent"],
}


def write(tmp_path: pathlib.Path, tree: Any = STUDY) -> pathlib.Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(plain(tree), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(file, workdir, exit code, study.json) of the small study, from the command line."""
    folder = tmp_path_factory.mktemp("study")
    file = write(folder)
    code = main(["study", "--config", str(file), "--workdir", str(folder / "out"), "--seeds", "2"])
    return file, folder / "out", code, json.loads((folder / "out" / "study.json").read_text())


def test_the_table_s_numbers_are_those_of_the_runs(done):
    _, workdir, _, found = done
    own = cimrl_jax.load(workdir / "plain")
    column = found["columns"]["plain"]
    assert column["split"] == "test_balanced" and list(column["methods"]) == ["erm"]
    for method, entry in column["methods"].items():
        for key, cell in {
            "worst": own.cell(method, "test_balanced", WORST),
            "accuracy": own.cell(method, "test", "accuracy"),
            "gap": own.gap(method),
        }.items():
            assert entry[key] == (cell and cell._asdict()), (method, key)
        assert entry["labels"] == own.runs_of(method)[0]["needs"] == "none" and entry["selected_by"] == "worst_class"
        worst = entry["worst"]
        text = "{:.1f} ± {:.1f} [{:.1f}, {:.1f}]".format(*(100 * worst[key] for key in ("mean", "std", "low", "high")))
        assert text in (workdir / "study.md").read_text()
        assert f"{100 * worst['mean']:.1f}" in (workdir / "study.html").read_text()
    assert column["methods"]["erm"]["best"]
    assert found["against"] == {"cimrl": []}


def test_folds_are_pooled_by_their_counts(done):
    _, workdir, _, found = done
    folds = [cimrl_jax.load(workdir / "folds" / name) for name in "01"]
    worst, accuracy = [], []
    for seed in (0, 1):
        own = [next(run for run in fold.runs if run["seed"] == seed)["splits"] for fold in folds]
        counts = [{name: (group["accuracy"] * group["n"], group["n"]) for name, group in split["test_balanced"]["groups"].items()} for split in own]
        worst.append(min(sum(c[name][0] for c in counts) / sum(c[name][1] for c in counts) for name in counts[0]))
        accuracy.append((24 * own[0]["test"]["accuracy"] + 40 * own[1]["test"]["accuracy"]) / 64)
    entry = found["columns"]["both folds"]["methods"]["erm"]
    assert entry["worst"]["mean"] == pytest.approx(np.mean(worst)) and entry["worst"]["std"] == pytest.approx(np.std(worst, ddof=1))
    assert [entry["worst"]["low"], entry["worst"]["high"]] == pytest.approx(metrics.bootstrap_interval(worst, resamples=20))
    assert entry["accuracy"]["mean"] == pytest.approx(np.mean(accuracy)) and entry["worst"]["n"] == 2


def test_a_run_that_fails_is_named_with_its_reason_and_the_others_go_on(done):
    _, workdir, code, found = done
    assert code == 2
    column = found["columns"]["absent"]
    assert column["methods"] == {} and column["notes"] == ["data set 'synthetic' is generated and reads no files; leave data.path out (got /nowhere)"]
    assert f"- absent: {column['notes'][0]}\n" in (workdir / "study.md").read_text()
    assert "Not measured" in (workdir / "study.html").read_text()


def test_a_second_start_trains_nothing_and_a_changed_config_only_its_own(done, monkeypatch, capfd, tmp_path):
    file, workdir, _, found = done
    called = []

    def train(program, *arguments):
        called.append(program.name)
        raise UserError("not now")

    monkeypatch.setattr(loop, "train", train)
    before = (workdir / "plain" / "results.json").stat().st_mtime_ns
    arguments = ["study", "--config", str(file), "--workdir", str(workdir), "--seeds", "2"]
    assert main([*arguments, "--only", "plain,both folds"]) == 0
    out = capfd.readouterr().out
    assert called == [] and "1 of 3: plain: done before" in out and "3 of 3: folds/1: done before" in out
    assert (workdir / "plain" / "results.json").stat().st_mtime_ns == before
    again = json.loads((workdir / "study.json").read_text())
    assert again["columns"]["both folds"] == found["columns"]["both folds"] and again["columns"]["absent"]["notes"] == [study.NOT_RUN]
    assert main([*arguments, "--only", "plain,both folds", "--runs.folds/1.evaluate.level", "0.9"]) == 2
    assert called == ["erm"] and "error: 1 of 3 runs failed" in (err := capfd.readouterr().err) and err.endswith("folds/1: not now\n")
    columns = json.loads((workdir / "study.json").read_text())["columns"]
    assert columns["both folds"]["notes"] == ["1 of 2 folds are pooled", "folds/1: not now"] and columns["plain"] == found["columns"]["plain"]
    (workdir / "plain" / "results.json").rename(tmp_path / "kept")
    assert main([*arguments, "--only", "plain"]) == 2, "a run without its results is run again"
    (tmp_path / "kept").rename(workdir / "plain" / "results.json")


def test_an_interrupt_ends_the_study_with_the_code_of_the_signal(tmp_path, monkeypatch, capfd):
    def stop(config, **_):
        raise loop.Interrupted(15)

    monkeypatch.setattr(experiment, "run", stop)
    assert main(["study", "--config", str(write(tmp_path)), "--workdir", str(tmp_path / "out")]) == 143
    captured = capfd.readouterr()
    assert captured.err == "interrupted; the same command goes on where it was\n" and "1 of 4: plain\n" in captured.out
    assert "2 of 4" not in captured.out


def test_what_is_left_is_estimated_from_what_was_done(tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 60.0, 60.0, 100.0, 100.0, 130.0])
    monkeypatch.setattr(study.time, "monotonic", lambda: next(clock, 200.0))
    monkeypatch.setattr(experiment, "run", lambda config, quiet: results({"erm": [0.5, 0.6]}))
    tree = {"base": BASE, "runs": {"a": {}, "b": {}, "c": {"train": {"steps": 12}}}}
    study.run(tree, workdir=str(tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if " of 3: " in line]
    assert lines == ["1 of 3: a", "2 of 3: b, about 3 min 00 s left", "3 of 3: c, about 1 min 40 s left"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rnus": {}}, "rnus: unknown key; did you mean 'runs'?"),
        ({"runs": {}}, "runs: there are none; expected at least one"),
        ({"runs": ["a"]}, "runs: expected a section, got ['a']"),
        ({"runs": {"a": 3}}, "runs.a: expected a section of keys and values, got 3"),
        ({"runs": {"a": {"train": {"stpes": 3}}}}, "runs.a: train.stpes: unknown key; did you mean 'train.steps'?"),
        ({"runs": {"a": {"config": "/nowhere/a.py"}}}, "there is no config file /nowhere/a.py"),
        ({"runs": {"a": {"config": 3}}}, "runs.a: config: got 3, expected the path of a config file"),
        ({"runs": {"a": {"workdir": "x"}}}, "runs.a: workdir: a run's folder has its name in the study's"),
        ({"runs": {"../a": {}}}, "runs: '../a' is no name of a folder"),
        ({"runs": {"a": {}, "a/b": {}}}, "runs: 'a/b' would lie in the folder of 'a'; rename one of them"),
        ({"pool": {"p": ["plian"]}}, "pool.p: there is no run 'plian'; did you mean 'plain'?"),
        ({"pool": {"p": "plain"}}, "pool.p: got 'plain', expected a list of runs"),
        ({"pool": {"p": ["plain"], "q": ["plain"]}}, "pool.q: the run 'plain' is pooled twice"),
        ({"pool": {"plain": ["folds/0"]}}, "pool.plain: there is a run of that name too"),
        ({"plots": {"size": {"1": "plian"}}}, "plots.size.1: there is no run or pool 'plian'; did you mean 'plain'?"),
        ({"plots": {"size": {"big": "plain"}}}, "plots.size: got 'big', expected a number"),
        ({"plots": {"size": "plain"}}, "plots.size: expected a section {number: run}, got 'plain'"),
        ({"table": ["plian"]}, "table: there is no run or pool 'plian'"),
        ({"table": "plain"}, "table: got 'plain', expected a list"),
        ({"table": [["plain"]]}, "table: there is no run or pool ['plain']"),
        ({"pool": {"p": [["plain"]]}}, "pool.p: there is no run ['plain']"),
        ({"plots": {"size": {"1": ["plain"]}}}, "plots.size.1: there is no run or pool ['plain']"),
        ({"plots": {"size": {"nan": "plain"}}}, "plots.size: got 'nan', expected a number"),
        (["a"], "expected a dict with the key runs, got ['a']"),
    ],
)  # fmt: skip
def test_a_bad_study_is_one_line_before_anything_runs(tmp_path, capfd, change, expected):
    file = write(tmp_path, {**STUDY, "pool": {}, "plots": {}, "table": [], **change} if isinstance(change, dict) else change)
    assert main(["study", "--config", str(file), "--workdir", str(tmp_path / "out")]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ") and expected in err and err.count("\n") == 1 and out == "", err
    assert str(file) in err or "/nowhere" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["study"], "nothing to run: expected study --config FILE"),
        (["study", "train", "--config", "{file}"], "study trains, evaluates and reports; expected it without 'train'"),
        (["study", "--config", "{file}", "--only"], "--only: expected names of runs"),
        (["study", "--config", "{file}", "--only", "plian"], "--only: there is no run 'plian'; did you mean 'plain'?"),
        (["study", "--config", "{file}", "--train.stpes", "3"], "command line: train.stpes: unknown key"),
        (["study", "--config", "{file}", "--runs.plian.train.steps", "3"], "command line: runs.plian.train.steps: expected runs.NAME.KEY"),
        (["study", "--config", "{configs}/digits.py"], "{configs}/digits.py: expected a variable `study`"),
        (["--config", "{configs}/studies/recipe.py"], "{configs}/studies/recipe.py is a study of several runs; expected the command `study`"),
        (["studdy", "--config", "{file}"], "unknown command 'studdy'; did you mean 'study'?"),
    ],
)
def test_a_bad_command_is_one_line(tmp_path, capfd, line, expected):
    names = {"file": write(tmp_path), "configs": ROOT / "configs"}
    assert main([word.format(**names) for word in line]) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"error: {expected.format(**names)}") and err.count("\n") == 1 and out == "", err


def test_the_command_line_wins_over_a_run_s_overlay_that_over_the_base_and_that_over_its_file(tmp_path):
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"train": {"steps": 1, "batch_size": 1, "chunk": 1, "eval_every": 1}}))
    tree = {
        "base": {**BASE, "config": str(tmp_path / "one.yaml"), "train": {"batch_size": 2, "chunk": 2, "eval_every": 2}},
        "runs": {"a-b/0": {"train": {"chunk": 3, "eval_every": 3}}, "a-b/1": {}, "c": {}},
        "pool": {"ab": ["a-b/0", "a-b/1"]},
    }
    read = study.read(tree, workdir="w", overrides={"seeds": "1", "runs.a_b/0.train.eval_every": "4", "runs.ab.model.dim": "4"})
    first, second, other = read.runs.values()
    assert [getattr(first.train, key) for key in ("steps", "batch_size", "chunk", "eval_every")] == [1, 2, 3, 4]
    assert (first.model.dim, second.model.dim, other.model.dim) == (4, 4, 8) and other.seeds == (0,)
    assert (first.name, first.workdir) == ("a-b/0", str(pathlib.Path("w/a-b/0"))) and read.table == ["ab", "c"]


# Written by hand.


def results(worst: dict[str, list[float]], *, n: int = 10, split: str = "test_balanced", **told: Any) -> Results:
    """One value a seed; the other group is always right."""
    runs = []
    for method, values in worst.items():
        for seed, value in enumerate(values):
            groups = {"hard": {"accuracy": value, "n": n}, "easy": {"accuracy": 1.0, "n": 3 * n}, "none": {"accuracy": None, "n": 0}}
            measured = {"accuracy": (value + 3) / 4, WORST: value, "groups": groups}
            run = {"method": method, "seed": seed, "needs": told.get(method, "none"), "selected_by": "worst_class"}
            runs.append(run | {"splits": {split: measured, "test": measured}, "train": {"seconds": 2.0}})
    config = {"evaluate": {"bootstrap": 50, "level": 0.9}}
    return Results(config=config, environment={}, runs=runs, summary=summarise(runs, level=0.9, resamples=50), gap_closed={})


def compared(*columns: Results, **changes: Any) -> Comparison:
    found = {f"d{i}": Column(f"d{i}", own) for i, own in enumerate(columns)}
    return Comparison(**({"name": "by hand", "columns": found, "table": list(found), "plots": {}} | changes))


def test_pooled_by_hand():
    small, large = results({"erm": [0.2, 0.4], "other": [1.0, 1.0]}, n=5), results({"erm": [0.8, 0.6]}, n=15)
    pooled = pool([small, large])
    assert pooled.methods() == ["erm"], "what one fold lacks is left out"
    # (0.2 x 5 + 0.8 x 15) / 20 = 0.65 and (0.4 x 5 + 0.6 x 15) / 20 = 0.55
    assert [run["splits"]["test_balanced"][WORST] for run in pooled.runs] == pytest.approx([0.65, 0.55])
    assert [run["splits"]["test"]["accuracy"] for run in pooled.runs] == pytest.approx([(0.65 + 3) / 4, (0.55 + 3) / 4])
    assert pooled.runs[0]["splits"]["test"]["groups"]["none"] == {"accuracy": None, "n": 0} and pooled.runs[0]["train"]["seconds"] == 4.0
    cell = pooled.cell("erm", "test_balanced", WORST)
    assert (
        cell is not None
        and cell.mean == pytest.approx(0.6)
        and (cell.low, cell.high) == pytest.approx(metrics.bootstrap_interval([0.65, 0.55], level=0.9, resamples=50))
    )


def test_the_gap_of_pooled_folds_and_of_data_without_a_balanced_split_is_that_of_the_headline_split():
    three = {"erm": [0.2, 0.3, 0.25], "cimrl": [0.6, 0.5, 0.7], "ceiling": [0.8, 0.9, 0.85]}
    expected = robustness.gap_closed(three["cimrl"], three["erm"], three["ceiling"], level=0.9, resamples=50)
    assert expected is not None
    for found in (results(three, split="test"), pool([results(three), results(three)])):
        gap = Column("a", found).entries()["cimrl"].gap
        assert gap is not None and (gap.mean, gap.low, gap.high) == pytest.approx((expected["mean"], *expected["ci95"]))
    told = dataclasses.replace(results(three), gap_closed={"cimrl": {"mean": 0.5, "ci95": [0.4, 0.6], "n": 3}})
    assert Column("a", told).entries()["cimrl"].gap == told.gap("cimrl"), "what the run says itself comes first"


def test_the_best_is_the_best_of_those_that_saw_no_group():
    found = results({"erm": [0.2, 0.2], "dro": [0.9, 0.9], "cimrl": [0.6, 0.6], "ceiling": [1.0, 1.0]}, dro="groups")
    assert {method: entry.best for method, entry in Column("a", found).entries().items()} == {
        "erm": False, "dro": False, "cimrl": True, "ceiling": False,
    }  # fmt: skip
    text = markdown(compared(found))
    assert "| cimrl | **60.0 ± 0.0 [60.0, 60.0]**" in text and text.count("**") == 2


def test_cimrl_against_each_method_counts_columns():
    first = results({"erm": [0.2, 0.3, 0.2], "jtt": [0.6, 0.6, 0.6], "cimrl": [0.5, 0.6, 0.5], "ceiling": [0.8, 0.8, 0.8]})
    second = results({"erm": [0.2, 0.9, 0.2], "cimrl": [0.5, 0.5, 0.5]})
    lines = {duel.method: duel for duel in comparison.duels(compared(first, second))}
    assert list(lines) == ["erm", "jtt"]
    assert lines["erm"][:4] == ("erm", 2, 1, 2) and lines["erm"].difference == pytest.approx((0.3 + 0.5 - 1.3 / 3) / 2)
    assert lines["jtt"][:4] == ("jtt", 0, 0, 1)
    assert comparison.duels(compared(results({"erm": [0.1]}))) == []


class Reader(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_names_are_text_on_the_page_and_in_the_table():
    own = {name: results({"erm": [0.2, 0.3], EVIL: [0.5, 0.6], "cimrl": [0.6, 0.7]}) for name in (EVIL, "b")}
    columns = {name: Column(name, found, (EVIL,)) for name, found in own.items()} | {"c": Column("c", None, (EVIL,))}
    found = Comparison(EVIL, columns, [EVIL, "c"], {EVIL: {"1": EVIL, "20": "b"}})
    read = Reader(study_page.render(found))
    assert "script" not in read.tags and read.tags.count("svg") == 1 and read.text.count(EVIL) >= 8
    text = markdown(found)
    assert "<script>" not in text.replace("\\<", "") and " | **a**" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bare = [row.replace("\\|", "") for row in rows]
    first = bare[:5]
    assert {row.count("|") for row in first} == {4}, "no name makes a column"


def test_a_plot_of_the_first_tables_name_takes_nothing_from_it():
    columns = {name: Column(name, results({"erm": [0.2, 0.3]})) for name in ("alone", "one", "two")}
    found = Comparison("clash", columns, ["alone"], {comparison.FIRST: {"1": "one", "2": "two"}})
    text, page = markdown(found), study_page.render(found)
    assert text.count(f"## {comparison.FIRST}") == 2 and "| method | alone |" in text and "| method | 1 | 2 |" in text
    assert page.count(f"<h2>{comparison.FIRST}</h2>") == 2 and Reader(page).tags.count("svg") == 1
    assert page.index(">alone</th>") < page.index("<svg")  # the figure is the second section's


def test_a_study_of_nothing_measured_still_makes_its_page():
    found = Comparison("none", {"a": Column("a", None, ("why",))}, ["a"], {"size": {"1": "a"}})
    assert "why" in study_page.render(found) and "Nothing was measured." in markdown(found)
    assert found.to_json()["columns"]["a"]["methods"] == {}


@pytest.mark.parametrize("file", ["recipe", "ablations", "robustness"])
def test_every_study_of_the_project_reads_and_says_what_it_costs(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    read = study.read(f"configs/studies/{file}.py")
    assert read.workdir == pathlib.Path("runs") / file and len(read.runs) > 5
    assert all({"erm", "cimrl"} <= set(config.methods) for config in read.runs.values())
    about = (ROOT / "configs" / "studies" / f"{file}.py").read_text().split('"""')[1]
    assert f"python -m cimrl_jax.main study --config configs/studies/{file}.py" in about and "Cost:" in about and "Result:" in about
