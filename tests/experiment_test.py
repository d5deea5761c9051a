"""`run` and `load` as a Python user has them: what they return, what they refuse, and what a folder holds in between."""

from __future__ import annotations

import dataclasses
import fcntl
import json

import jax
import numpy as np
import pytest

import cimrl_jax
from cimrl_jax import experiment
from cimrl_jax.assembly import assemble, programs
from cimrl_jax.data.source import ArraySource
from cimrl_jax.errors import UserError
from cimrl_jax.report.results import Results
from cimrl_jax.selection import Look
from cimrl_jax.train import loop
from cimrl_jax.types import REFUSED
from tests import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return cimrl_jax.run(tiny.study(workdir, seeds=(0, 1, 2)), quiet=True), workdir


def test_run_returns_what_load_reads_back(finished):
    results, workdir = finished
    assert isinstance(results, Results)
    assert results.to_json() == cimrl_jax.load(workdir).to_json() == json.loads((workdir / "results.json").read_text())
    assert results.methods() == ["erm"]
    assert [run["seed"] for run in results.runs] == [0, 1, 2]
    cell = results.cell("erm", "test", "accuracy")
    assert cell is not None and cell.n == 3 and 0 <= cell.mean <= 1
    assert cell.mean == pytest.approx(np.mean([run["splits"]["test"]["accuracy"] for run in results.runs]))


def test_a_nested_mapping_with_overrides_is_a_config_and_gives_the_same_numbers(finished, tmp_path):
    results, _ = finished
    again = cimrl_jax.run(tiny.STUDY, quiet=True, workdir=str(tmp_path), seeds=[0, 1, 2], report={"html": False})
    assert again is not None
    assert [run["splits"] for run in again.runs] == [run["splits"] for run in results.runs]
    assert not (tmp_path / "report.html").exists()


def test_the_parts_go_one_by_one(tmp_path, finished):
    config = tiny.study(tmp_path, seeds=(0, 1, 2))
    with pytest.raises(UserError, match=r"no results at .*results\.json; let the run finish first"):
        cimrl_jax.run(config, parts=("report",), quiet=True)
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints/erm; run `train` first"):
        cimrl_jax.run(config, parts=("evaluate",), quiet=True)
    assert cimrl_jax.run(config, parts=("train",), quiet=True) is None
    assert not (tmp_path / "results.json").exists()
    evaluated = cimrl_jax.run(config, parts=("evaluate",), quiet=True)
    assert evaluated is not None and not (tmp_path / "report.html").exists()
    assert evaluated.summary == finished[0].summary
    reported = cimrl_jax.run(config, parts=("report",), quiet=True)
    assert reported is not None and reported.to_json() == evaluated.to_json()
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_half_a_training_cannot_be_evaluated(tmp_path):
    config = tiny.study(tmp_path, train__checkpoint_every=2)
    built = assemble(config)

    def stop(done):
        if done == 4:
            raise MemoryError

    with pytest.raises(MemoryError):
        plan = Look(config, built).plan(built.programs[0])
        loop.train(built.programs[0], plan, tmp_path / "checkpoints" / "erm", tmp_path / "metrics.jsonl", tiny.Quiet(stop))
    with pytest.raises(UserError, match="erm is trained for 2 of 6 steps; run `train` with the same config to finish it"):
        cimrl_jax.run(config, parts=("evaluate",), quiet=True)


def test_another_run_in_the_same_folder_is_refused_by_the_key_that_differs(finished):
    _, workdir = finished
    before = (workdir / "config.yaml").read_text()
    with pytest.raises(UserError, match=rf"workdir {workdir} holds another run \(train.steps is 6 there, 7 here\); choose another --workdir"):
        cimrl_jax.run(tiny.study(workdir, seeds=(0, 1, 2), train__steps=7), quiet=True)
    assert (workdir / "config.yaml").read_text() == before


def test_a_method_added_to_a_folder_is_trained_and_the_others_are_not(tmp_path):
    first = cimrl_jax.run(tiny.study(tmp_path), quiet=True)
    clock = written(tmp_path, "erm")
    both = cimrl_jax.run(tiny.study(tmp_path, methods=("erm", "mixup"), sweep={"method.mixup.alpha": (0.2, 0.4)}, evaluate__bootstrap=7), quiet=True)
    assert first is not None and both is not None
    assert both.methods() == ["erm", "mixup"] and written(tmp_path, "erm") == clock
    assert [run["splits"] for run in both.runs_of("erm")] == [run["splits"] for run in first.runs]
    told = rf"\(sweep.method.mixup.alpha is .* there, None here\).*or delete {tmp_path}/checkpoints/mixup to train mixup anew"
    with pytest.raises(UserError, match=told):
        cimrl_jax.run(tiny.study(tmp_path, methods=("erm", "mixup")), quiet=True)


def written(workdir, name):
    return sorted((path, path.stat().st_mtime_ns) for path in (workdir / "checkpoints" / name).rglob("*") if path.is_file())


def test_a_folder_in_use_and_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; expected a folder"):
        cimrl_jax.run(tiny.study(tmp_path / "file"), quiet=True)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another process; wait for it or choose another --workdir"):
            cimrl_jax.run(tiny.study(tmp_path), quiet=True)


def test_load_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match=rf"no results at {tmp_path}/results.json"):
        cimrl_jax.load(tmp_path)


def test_the_ceiling_is_erm_on_randomised_data_where_both_are_there():
    def names(**changes):
        return [program.name for program in assemble(tiny.study(evaluate__ceiling=True, **changes)).programs]

    assert names(methods=("erm", "cimrl")) == ["erm", "cimrl", "ceiling"]
    assert names(methods=("cimrl",)) == ["cimrl"]
    built = assemble(tiny.study(evaluate__ceiling=True))
    assert built.programs[-1].source is built.dataset.split("train_randomised")
    assert built.programs[0].source is built.dataset.split("train")


def test_a_training_split_without_a_class_is_refused():
    built = assemble(tiny.study())
    train = built.dataset.split("train")
    assert isinstance(train, ArraySource)
    lacking = dataclasses.replace(train, label=np.zeros_like(train.label))
    dataset = dataclasses.replace(built.dataset, splits={**built.dataset.splits, "train": lacking})
    with pytest.raises(UserError, match=r"data set 'synthetic' \(train\) has no example of class 'positive'; every class needs one"):
        programs(tiny.study(), dataset, built.model, "erm")


def test_training_sizes_and_counts_reach_the_method():
    program = tiny.assembled("group_dro")
    assert (program.spec.num_examples, program.spec.steps, program.spec.num_classes, program.spec.num_groups) == (48, 6, 2, 4)
    assert sum(program.spec.class_counts) == sum(program.spec.group_counts) == 48
    assert tiny.assembled("erm").spec.group_counts == ()
    assert program.hyper[0].keys() == {"eta", "adjustment", "learning_rate", "weight_decay"}


def test_the_compile_cache_goes_where_the_environment_says(tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, name) for name in names}

    def folder():
        return getattr(jax.config, names[0])

    try:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        experiment._use_compile_cache()
        assert folder() == str(tmp_path / "cimrl_jax" / "xla")
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
        experiment._use_compile_cache()
        assert folder() == str(tmp_path / "own")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_method_that_gave_its_counterfactuals_up_is_told_of():
    def run(method, refused):
        return {
            "method": method,
            "identification": {"image": {"cause": {}, **({} if refused is None else {"verdict": {REFUSED: refused}})}, "all": {}},
        }

    assert experiment.refusals([run("erm", None), run("cimrl", 0.0), run("cimrl", 0.0)]) == []
    (told,) = experiment.refusals([run("erm", None), run("cimrl", 1.0), run("cimrl", 0.0), run("cimrl", 1.0)])
    assert told.startswith("cimrl gave up its edits of image in 2 of 3 seeds")
