"""The command line from end to end: what a run leaves behind, and that no start, stop, kill or full disk in between changes it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from cimrl_jax import files
from cimrl_jax.assembly import assemble
from cimrl_jax.config import fingerprint, load, plain
from cimrl_jax.main import main
from cimrl_jax.selection import Look
from cimrl_jax.train import loop
from cimrl_jax.types import REFUSED
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
SHRUNK = shlex.split("""
--methods erm,cimrl --seeds 2 --data.train 60 --data.validation 20 --data.test 40
--model.dim 8 --model.heads 2 --model.fusion-layers 1 --model.causal-layers 0 --model.image.patch 14 --model.image.depth 0 --model.text.encoder
text_transformer --model.text.depth 0 --train.steps 4 --train.batch-size 8 --train.chunk 2 --train.eval-every 2 --train.compile-cache no
--evaluate.bootstrap 20 --evaluate.batch-size 40 --report.examples 2
""")
METRICS = {
    "accuracy",
    "accuracy_train_weighted",
    "accuracy_group_mean",
    "worst_group_accuracy",
    "worst_class_accuracy",
    "f1",
    "auroc",
    "ece",
    "groups",
}
METHODS = ["erm", "cimrl", "ceiling"]


def contents(folder):
    """Every file's bytes, but the lock's."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(workdir, seconds that it took) of the shipped config, shrunk."""
    workdir = tmp_path_factory.mktemp("digits")
    began = time.perf_counter()
    assert main(["--config", str(ROOT / "configs" / "digits.py"), "--workdir", str(workdir), *SHRUNK]) == 0
    return workdir, time.perf_counter() - began


@pytest.fixture(scope="module")
def results(digits):
    return json.loads((digits[0] / "results.json").read_text())


def test_everything_that_a_run_should_leave_is_there(digits):
    workdir, _ = digits
    assert {"config.yaml", "results.json", "metrics.jsonl", "report.html", "checkpoints"} <= {path.name for path in workdir.iterdir()}
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == sorted(METHODS)
    assert all((workdir / "checkpoints" / name / "4").is_dir() for name in METHODS)
    assert all(name in (workdir / "report.html").read_text() for name in METHODS)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {(line["method"], line["seed"], line["step"]) for line in lines} == {(m, s, k) for m in METHODS for s in (0, 1) for k in (2, 4)}


def test_the_results_file_keeps_its_schema(results):
    assert {"schema", "config", "environment", "runs", "summary", "gap_closed"} <= set(results) and results["schema"] == 1
    assert [(run["method"], run["seed"]) for run in results["runs"]] == [(m, s) for m in METHODS for s in (0, 1)]
    for run in results["runs"]:
        assert {"method", "seed", "hyper", "selected_by", "splits", "identification", "train"} <= set(run)
        assert {"steps", "seconds", "compile_seconds", "examples_per_second"} <= set(run["train"]) and run["train"]["steps"] == 4
        assert run["train"]["examples_per_second"] > 0 and run["train"]["compile_seconds"] > 0
        assert run["selected_by"] == "worst_class" and run["hyper"]["learning_rate"] == pytest.approx(1e-3)
        assert {"validation", "test", "test_balanced", "test_flipped"} <= set(run["splits"]) and not any("train" in name for name in run["splits"])
        for split in run["splits"].values():
            assert set(split) >= METRICS
            assert all(0 <= split[name] <= 1 for name in METRICS - {"groups", "auroc"})
            assert all({"accuracy", "n"} <= set(group) for group in split["groups"].values()) and len(split["groups"]) == 4
            assert sum(group["n"] for group in split["groups"].values()) in (20, 40)
    assert all({"image", "text"} <= set(run["identification"]) for run in results["runs"])
    assert "cimrl" in {run["method"] for run in results["runs"] if "all" in run["identification"]}
    for found in (run["identification"] for run in results["runs"] if run["method"] == "cimrl"):
        assert found["image"]["verdict"] == found["text"]["verdict"] == {REFUSED: 0}
        assert found["all"]["verdict"]["head refitted"] in (0, 1)
    for line in results["summary"]:
        assert {"method", "split", "metric", "mean", "std", "ci95", "n"} <= set(line) and line["n"] <= 2
    assert {(line["method"], line["metric"]) for line in results["summary"]} >= {(m, metric) for m in METHODS for metric in METRICS - {"groups"}}
    assert set(results["gap_closed"]) == {"cimrl"}


def test_a_second_start_does_nothing_new_and_fast(digits):
    workdir, seconds = digits
    before = contents(workdir)
    began = time.perf_counter()
    assert main(["--config", str(ROOT / "configs" / "digits.py"), "--workdir", str(workdir), *SHRUNK]) == 0
    assert time.perf_counter() - began < max(seconds, 5)
    after = contents(workdir)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name] and name != "report.html"] == []  # which may say when it was made


def test_the_written_config_runs_again_to_the_same_numbers(digits, results, tmp_path):
    workdir, _ = digits
    assert main(["train", "evaluate", "--config", str(workdir / "config.yaml"), "--workdir", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert fingerprint(load(tmp_path / "config.yaml")) == fingerprint(load(workdir / "config.yaml"))
    for key in ("splits", "identification", "hyper", "selected_step"):
        assert [run[key] for run in again["runs"]] == [run[key] for run in results["runs"]]
    assert (again["summary"], again["gap_closed"]) == (results["summary"], results["gap_closed"])


def test_another_config_in_the_same_folder_is_one_line_and_exit_code_2(digits, capfd):
    workdir, _ = digits
    arguments = ["--config", str(ROOT / "configs" / "digits.py"), "--workdir", str(workdir), *SHRUNK, "--train.steps", "5"]
    before = contents(workdir)
    assert_refused(capfd, arguments, f"workdir {workdir} holds another run (train.steps is 4 there, 5 here)")
    assert contents(workdir) == before


def assert_refused(capfd, arguments, *parts):
    """Exit code 2, and one line on stderr that holds these parts."""
    capfd.readouterr()
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(part in err for part in parts), err


# The tiny study, as a file.


@pytest.fixture
def study(tmp_path):
    """Arguments that name the tiny study's file and a folder of its own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain(tiny.STUDY)))
    return ["--config", str(path), "--workdir", str(tmp_path / "run")]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--methods", "erm,cimlr"], ["methods", "there is no method 'cimlr'", "did you mean 'cimrl'?"]),
        (["--data.name", "digit"], ["data.name", "there is no data set 'digit'", "did you mean 'digits'?"]),
        (["--model.m0.encoder", "identify"], ["model.m0.encoder", "there is no encoder 'identify'", "did you mean 'identity'?"]),
        (["--model.m2.encoder", "identity"], ["'m2'", "did you mean 'm"]),
        (["--method.cimrl.tua", "0.1"], ["method.cimrl.tua: unknown key", "did you mean 'method.cimrl.tau'?"]),
        (["--train.batch_size", "0"], ["train.batch_size", "at least 1"]),
        (["--train.mesh_data", "3"], ["expected 1, the number of devices"]),
        (["--data.path", "somewhere"], ["data set 'synthetic' is generated and reads no files; leave data.path out"]),
    ],
)
def test_what_the_user_can_mend_is_one_line(study, capfd, arguments, parts):
    assert_refused(capfd, [*study, *arguments], *parts)


def test_a_method_that_needs_groups_is_refused_on_data_without(study, capfd, monkeypatch):
    from cimrl_jax.data.datasets import synthetic

    build = synthetic.build

    def nameless(*arguments, **options):
        dataset = build(*arguments, **options)
        dataset.splits["train"].group[:] = -1
        return dataset

    monkeypatch.setattr(synthetic, "build", nameless)
    assert_refused(capfd, [*study, "--methods", "group_dro"], "method 'group_dro' trains on group labels", "leave this method out of --methods")


# Kills, signals, and a full disk.

LONG = [
    "--methods",
    "cimrl",
    "--seeds",
    "0,",
    "--train.steps",
    "48",
    "--train.chunk",
    "2",
    "--train.checkpoint-every",
    "4",
    "--train.eval-every",
    "10",
]


def steps_done(workdir):
    folder = workdir / "checkpoints" / "cimrl"
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def final(workdir):
    config = load(workdir / "config.yaml")
    built = assemble(config)
    program = built.programs[0]
    return loop.restore(program, Look(config, built).rules, workdir / "checkpoints" / program.name)


def test_killed_at_any_point_and_started_again_gives_the_same_bits(study, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "run"
    command, points = [sys.executable, "-m", "cimrl_jax.main", "train", *study, *LONG], []

    def start(workdir):
        return subprocess.Popen([*command, "--workdir", str(workdir)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    with start(straight) as undisturbed:
        for _ in range(3):
            began, pause = steps_done(killed), random.uniform(0, 0.3)
            with start(killed) as process:
                deadline = time.monotonic() + 120
                while steps_done(killed) <= began and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(pause)  # somewhere in a chunk, an evaluation or a checkpoint
                process.kill()
                _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL, f"the run ended before it was killed: {errors}"
            points.append((steps_done(killed), pause))
        _, errors = undisturbed.communicate()
        assert undisturbed.returncode == 0, errors
    assert 0 < points[0][0] < 48
    assert main(["train", *study, *LONG]) == 0
    done, resumed = final(killed)
    assert done == 48
    tiny.assert_equal(resumed._replace(clock={}), final(straight)[1]._replace(clock={}))
    assert (killed / "metrics.jsonl").read_text() == (straight / "metrics.jsonl").read_text(), points


@contextlib.contextmanager
def signalled(number, log):
    """Sends this process the signal as soon as a run has added to its log. Never ends the test run itself."""

    def size():
        return log.stat().st_size if log.exists() else 0

    began, over, before = size(), threading.Event(), signal.signal(number, lambda *_: None)

    def send():
        while size() <= began and not over.is_set():
            time.sleep(0.005)
        if not over.is_set():
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(number, before)


def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on(study, tmp_path, capfd):
    long, log, done = [*study, "--train.steps", "120", "--train.eval-every", "60"], tmp_path / "run" / "metrics.jsonl", 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with signalled(number, log):
            assert main(["train", *long]) == code
        assert capfd.readouterr().err == "interrupted; the same command goes on where it was\n"
        before, (done, _) = done, final(tmp_path / "run")
        assert before < done < 120 and done % 2 == 0
    assert main(["train", *long]) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if line["seed"] == 0 and "split" not in line] == list(range(2, 121, 2))


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of that size at `folder`, where one may be made; yields a function that enlarges it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can make a small file system")
    try:
        yield lambda larger: subprocess.run(["mount", "-o", f"remount,size={larger}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_nothing_half_written_and_more_space_goes_on(study, tmp_path, capfd):
    workdir = tmp_path / "disk" / "run"
    arguments = ["train", *study, "--workdir", str(workdir), "--train.checkpoint-every", "2"]
    with small_disk(tmp_path / "disk", "200k") as enlarge:
        assert_refused(capfd, arguments, f"cannot write a checkpoint to {workdir}/checkpoints/erm: No space left on device", "free some space")
        assert list((workdir / "checkpoints" / "erm").iterdir()) == []
        load(workdir / "config.yaml")
        enlarge("20m")
        assert main(arguments) == 0
        assert final(workdir)[0] == 6
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == len({tuple(line.items()) for line in lines})


def test_no_space_for_any_file_is_one_line_and_leaves_none_of_it(study, tmp_path, capfd, monkeypatch):
    workdir, lacking, fsync = tmp_path / "run", [], os.fsync

    def full(descriptor):
        if any(f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}") for name in lacking):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    for name, parts in {"config.yaml": ["train"], "results.json": ["evaluate"], "report.html": ["report"]}.items():
        lacking[:] = [name]
        assert_refused(capfd, [*parts, *study], f"cannot write {workdir / name}: No space left on device")
        assert not [path for path in workdir.iterdir() if name in path.name]
        lacking.clear()
        assert main([*parts, *study]) == 0
        assert (workdir / name).stat().st_size > 100


def test_a_workdir_that_cannot_be_written_is_one_line(study, capfd, tmp_path):
    (tmp_path / "taken").write_text("")
    assert_refused(capfd, [*study, "--workdir", str(tmp_path / "taken" / "run")], f"cannot write to {tmp_path}/taken/run: Not a directory")
