"""Which model is reported: every rule keeps its own, and a sweep's settings are compared by validation alone."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import cimrl_jax
from cimrl_jax.assembly import assemble
from cimrl_jax.data.source import ArraySource
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import robustness
from cimrl_jax.evaluate.predict import make_predict
from cimrl_jax.selection import Finished, Look, choose, needs
from cimrl_jax.train import loop
from tests import tiny

KEYS = {"worst_group": "worst_group_accuracy", "average": "accuracy", "worst_class": "worst_class_accuracy"}
SWEEP = {"method.group_dro.eta": (0.01, 0.5), "train.learning_rate": (1e-3, 3e-2, 0.1)}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Group DRO in six settings x two seeds, and what the run found."""
    folder = tmp_path_factory.mktemp("swept")
    config = tiny.study(folder, methods=("group_dro",), sweep=SWEEP, train__eval_every=2, train__select_from=0.0)
    return config, cimrl_jax.run(config, quiet=True), folder


def test_every_rule_selects_what_its_name_says(swept):
    config, _, folder = swept
    built = assemble(config)
    look = Look(config, built)
    assert look.rules == ("worst_class", "average", "worst_group", "oracle", "last")
    _, trained = loop.restore(built.programs[0], look.rules, folder / "checkpoints" / "group_dro")
    seen = [line for line in lines(folder) if line.get("split") == "validation"]
    for member in range(built.programs[0].members):
        own = [line for line in seen if line["member"] == member]
        assert [line["step"] for line in own] == [2, 4, 6]
        for rule, key in KEYS.items():
            best = max(line[key] for line in own)
            assert trained.selected[rule].score[member] == pytest.approx(best)
            assert trained.selected[rule].step[member] == max(line["step"] for line in own if line[key] == best)
        assert trained.selected["last"].step[member] == 6


def test_every_mode_and_every_pair_is_measured_in_one_pass_over_each_split():
    """A method whose modes are linear in what the model says, so that each can be had from it by hand."""
    config = tiny.study()
    built = assemble(config)
    traces = []

    def mode(scale):
        def predict(state, hyper, model, params, slots, codes):
            traces.append(scale)
            return scale * model.decide(params["model"], codes).logits

        return predict

    modes = {"against": mode(-1.0), "default": mode(1.0)}
    own = dataclasses.replace(built.programs[0], method=built.programs[0].method._replace(predict=modes["default"], modes=modes))
    states = tiny.members(own)
    same = loop.Selected(states.params, states.method, np.zeros(2), np.zeros(2))
    look = Look(config, built)
    found = look.measure_all(Finished(own, loop.Trained({"last": same}, states.hyper, states, {}), (0, 1)), "last")
    assert list(found) == ["", "against", "default"] and sorted(traces) == [-1.0, 1.0]
    plain = Finished(built.programs[0], loop.Trained({"last": same}, states.hyper, states, {}), (0, 1))
    right, predict = {}, make_predict(own.model)
    for split in ("test", "validation", "test_balanced", "test_flipped", "test_m0_only", "test_m1_only"):
        source = built.dataset.split(split)
        right[split] = predict(plain.picked("last"), source).logits.argmax(-1) == source.label
        for member, report in enumerate(look.measure(plain, "last", split)):
            one, default, against = (dict(found[name][member][split]) for name in ("", "default", "against"))
            assert one == default
            pairs = one.pop("both_right", None), against.pop("both_right", None)
            told = right["test"][member], right[split][member]  # rows of the same number are versions of one another
            assert pairs == ((np.mean(told[0] & told[1]), np.mean(~told[0] & ~told[1])) if split == "test_flipped" else (None, None))
            assert one == report and against["accuracy"] == pytest.approx(1 - report["accuracy"])
    assert set(found[""][0]) == set(right)


def test_rules_that_are_blind_to_the_shortcut_select_late_and_those_that_read_groups_at_any_time():
    config = tiny.study(train__select_from=0.5, train__eval_every=2)
    built = assemble(config)
    own = built.programs[0]
    plan = Look(config, built).plan(own)
    for step, late in ((2, False), (4, True)):
        scores, _ = plan.score(tiny.members(own), step)
        for rule, score in scores.items():
            assert np.isfinite(score).all() == (late or rule in ("worst_group", "oracle", "last"))


def test_the_oracle_reads_the_test_groups_and_bounds_every_other_rule(swept):
    config, results, folder = swept
    for run in results.runs:
        reached = {rule: entry["splits"]["test_balanced"]["worst_group_accuracy"] for rule, entry in run["selection"].items()}
        assert reached["oracle"] == max(reached.values())
        assert run["splits"]["test_balanced"]["worst_group_accuracy"] == reached[run["selected_by"]]
        assert run["selected_step"] == run["selection"][run["selected_by"]]["step"]
    assert {run["selected_by"] for run in results.runs} == {"worst_group"} and {run["needs"] for run in results.runs} == {"groups"}


def test_a_sweep_is_one_program_and_the_best_on_validation_over_all_seeds_is_reported(swept):
    config, results, folder = swept
    [program] = assemble(config).programs
    assert program.members == 12 and [path.name for path in (folder / "checkpoints").iterdir()] == ["group_dro"]
    assert [entry["setting"] for entry in results.settings] == [
        {"method.group_dro.eta": eta, "train.learning_rate": rate} for eta in (0.01, 0.5) for rate in (1e-3, 3e-2, 0.1)
    ]
    seen = [line for line in lines(folder) if line.get("split") == "validation"]
    scores = []
    for setting in range(6):
        best = [max(line["worst_group_accuracy"] for line in seen if line["member"] == 2 * setting + seed) for seed in (0, 1)]
        scores.append(np.mean(best))
    np.testing.assert_allclose([entry["score"] for entry in results.settings], scores, rtol=1e-6)
    chosen = int(np.argmax(scores))
    assert [entry["chosen"] for entry in results.settings] == [i == chosen for i in range(6)]
    assert [(run["seed"], run["setting"], run["member"]) for run in results.runs] == [
        (seed, results.settings[chosen]["setting"], 2 * chosen + seed) for seed in (0, 1)
    ]
    rate = results.settings[chosen]["setting"]["train.learning_rate"]
    np.testing.assert_allclose([run["hyper"]["learning_rate"] for run in results.runs], rate)


def test_a_swept_member_equals_a_run_of_that_setting_alone(swept, tmp_path):
    config, results, _ = swept
    setting = results.runs[0]["setting"]
    alone = cimrl_jax.run(dataclasses.replace(config, sweep={}, workdir=str(tmp_path)), quiet=True, **setting)
    assert alone is not None
    for run, other in zip(results.runs, alone.runs, strict=True):
        assert run["splits"]["test"]["accuracy"] == pytest.approx(other["splits"]["test"]["accuracy"])
        assert run["splits"]["test"]["ece"] == pytest.approx(other["splits"]["test"]["ece"], rel=1e-3)


def test_options_that_are_not_traced_are_swept_by_a_program_each():
    config = tiny.study(methods=("cimrl", "erm"), sweep={"method.cimrl.ortho": ("cosine", "correlation"), "method.cimrl.w_ci": (0.1, 0.0)})
    programs = assemble(config).programs
    assert [(own.name, own.label, own.members) for own in programs] == [("cimrl-1", "cimrl", 4), ("cimrl-2", "cimrl", 4), ("erm", "erm", 2)]
    assert [float(own["w_ci"]) for own in programs[1].hyper] == [0.1, 0.1, 0.0, 0.0]
    assert programs[1].settings[2] == {"method.cimrl.ortho": "correlation", "method.cimrl.w_ci": 0.0}


def test_a_method_may_have_a_learning_rate_and_weight_decay_of_its_own():
    changes = {"method__cimrl__learning_rate": 0.5, "sweep": {"method.cimrl.weight_decay": (0.1, 0.2), "train.learning_rate": (0.3,)}}
    erm, cimrl = assemble(tiny.study(methods=("erm", "cimrl"), seeds=(0,), **changes)).programs
    assert [own["weight_decay"] for own in cimrl.hyper] == [0.1, 0.2] and erm.hyper[0]["weight_decay"] == 1e-4
    assert {own["learning_rate"] for own in (*erm.hyper, *cimrl.hyper)} == {0.3}
    assert assemble(tiny.study(methods=("cimrl",), method__cimrl__learning_rate=0.5)).programs[0].hyper[0]["learning_rate"] == 0.5


@pytest.mark.parametrize("ways", [("group", "class"), ("class", "group")])
def test_settings_of_one_method_are_chosen_and_reported_under_one_rule(tmp_path, ways):
    """Balanced by classes, resampling is told no group, and alone would be selected otherwise."""
    results = cimrl_jax.run(tiny.study(tmp_path, methods=("resample",), sweep={"method.resample.by": ways}), quiet=True)
    assert results is not None
    rule = "worst_group" if ways[0] == "group" else "worst_class"
    [chosen] = [entry for entry in results.settings if entry["chosen"]]
    assert {run["selected_by"] for run in results.runs} == {entry["rule"] for entry in results.settings} == {rule}
    cell = results.cell("resample", "test", "worst_group_accuracy")
    assert cell is not None and cell.mean == pytest.approx(chosen["splits"]["test"]["worst_group_accuracy"]["mean"])


def test_the_first_of_equal_settings_is_chosen_and_every_one_is_measured():
    config = tiny.study(sweep={"train.learning_rate": (0.01, 0.02)}, seeds=(0,))
    built = assemble(config)
    look, [own] = Look(config, built), built.programs
    state = tiny.members(own)
    same = loop.Selected(state.params, state.method, np.zeros(2), np.full(2, 0.5))
    trained = loop.Trained(dict.fromkeys(look.rules, same), state.hyper, state, {})
    best, settings = choose([Finished(own, trained, (0, 1))], look)
    assert best.members == (0,) and [entry["chosen"] for entry in settings] == [True, False]
    members = best.picked("last")
    tiny.assert_equal(members.params, jax.tree.map(lambda x: x[:1], state.params))


def test_what_the_own_rule_is_and_what_a_method_needs(swept):
    config, _, _ = swept
    look = Look(config, assemble(tiny.study()))
    assert look.rule(tiny.method("erm")) == look.rule(tiny.method("cimrl")) == "worst_class"
    assert look.rule(tiny.method("group_dro")) == "worst_group"
    assert look.rule(tiny.method("erm")._replace(selection="worst_group")) == "worst_group"
    assert look.rule(tiny.method("erm")._replace(needs_validation_groups=True)) == "worst_group"
    assert needs(tiny.method("erm")) == "none"
    assert needs(tiny.method("erm")._replace(needs_groups=True, needs_attribute_names=True)) == "attribute names + groups"


def test_a_stage_is_told_of_groups_only_where_the_method_declares_them():
    config = tiny.study()
    built = assemble(config)
    own, look = built.programs[0], Look(config, built)
    for train, validation in ((False, False), (True, False), (False, True)):
        method = own.method._replace(needs_groups=train, needs_validation_groups=validation)
        read = look.plan(dataclasses.replace(own, method=method)).read
        for split, known in (("train", train), ("validation", validation)):
            told = read(tiny.members(own), split)
            source = built.dataset.split(split)
            np.testing.assert_array_equal(told.label, source.label)
            np.testing.assert_array_equal(told.group, source.group if known else -1)
            assert told.logits.shape == (2, len(source), 2) and told.features.shape == (2, len(source), 0 if split == "train" else 24)


def test_without_groups_no_rule_reads_them_and_asking_for_one_is_refused_before_training():
    config = tiny.study(evaluate__selection="worst_group")
    built = assemble(config)
    nameless = {
        name: ArraySource(source.inputs, source.label, np.full_like(source.group, -1))
        for name, source in built.dataset.splits.items()
        if isinstance(source, ArraySource)
    }
    lacking = dataclasses.replace(built, dataset=dataclasses.replace(built.dataset, splits=nameless))
    look = Look(config, lacking)
    assert look.rules == ("worst_class", "average", "last")
    assert Look(tiny.study(), lacking).rule(tiny.method("erm")._replace(selection="worst_group")) == "worst_class"
    with pytest.raises(UserError, match="the validation split has no known groups; use worst_class"):
        look.plan(built.programs[0])


def test_a_validation_split_without_minority_examples_scores_the_groups_that_it_has():
    config = tiny.study(evaluate__selection="worst_group")
    built = assemble(config)
    validation = built.dataset.split("validation")
    assert isinstance(validation, ArraySource)
    kept = np.flatnonzero(validation.group % 3 == 0)  # label = attribute
    part = ArraySource({m: x[kept] for m, x in validation.inputs.items()}, validation.label[kept], validation.group[kept])
    dataset = dataclasses.replace(built.dataset, splits={**built.dataset.splits, "validation": part})
    look = Look(config, dataclasses.replace(built, dataset=dataset))
    own = built.programs[0]
    scores, reports = look.plan(own).score(tiny.members(own), 6)
    fresh = loop.Selected(tiny.members(own).params, {}, np.zeros(2), np.zeros(2))
    right = look.measure(Finished(own, loop.Trained({"last": fresh}, {}, None, {}), (0, 1)), "last", "validation")
    for member, report in enumerate(right):
        found = [group["accuracy"] for group in report["groups"].values() if group["n"]]
        assert len(found) == 2 and scores["worst_group"][member] == min(found) == robustness.select("worst_group", report)
    assert all(report["worst_group_accuracy"] is not None for report in reports)
