"""Several processes that train together: the numbers of one process with as many devices, one set of files, and a stop that all agree on."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import yaml

from cimrl_jax.config import plain
from tests import tiny

METHODS = ("erm", "group_dro")
CONFIG = {**tiny.STUDY, "methods": METHODS, "evaluate": {**tiny.STUDY["evaluate"], "ceiling": False}}
ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def compiled() -> dict[str, str]:
    """What one of these runs compiled serves the next."""
    return {"JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


class Started:
    """The same command in `count` processes."""

    def __init__(self, workdir: pathlib.Path, words: Sequence[str] = (), *, count: int, devices: int = 1, config: dict | None = None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        file = workdir.parent / f"{workdir.name}.yaml"
        file.write_text(yaml.safe_dump(plain(config or CONFIG)))
        command = [sys.executable, "-m", "cimrl_jax.main", "--config", str(file), "--workdir", str(workdir), *words]
        together = ["--train.distributed"] if count > 1 else []
        self.processes = []
        for number in range(count):
            joined = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), **compiled(), **(joined if count > 1 else {})}
            self.processes.append(
                subprocess.Popen([*command, *together], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )

    def end(self) -> list[tuple[int, str]]:
        """(exit code, output) of each."""
        said = [process.communicate(timeout=300)[0] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, said, strict=True)]

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()


def run(workdir: pathlib.Path, *words: str, count: int, devices: int = 1, config: dict | None = None) -> dict:
    with Started(workdir, words, count=count, devices=devices, config=config) as started:
        for code, text in started.end():
            assert code == 0, text
    return json.loads((workdir / "results.json").read_text())


def same(first: dict, second: dict) -> None:
    """Equal steps selected and equal accuracies, of the methods that both have."""
    methods = {run["method"] for run in second["runs"]}
    kept = [[run for run in found["runs"] if run["method"] in methods] for found in (first, second)]
    for a, b in zip(*kept, strict=True):
        assert a["method"] == b["method"] and a["seed"] == b["seed"] and a["selected_step"] == b["selected_step"]
        for split in a["splits"]:
            assert a["splits"][split]["accuracy"] == pytest.approx(b["splits"][split]["accuracy"], abs=1e-6), (a["method"], split)


def losses(workdir: pathlib.Path) -> dict:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [((row["method"], row["member"], row["step"]), row["loss"]) for row in rows if "loss" in row]
    assert len(found) == len(dict(found)), "a line was written twice"
    return dict(found)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[tuple[pathlib.Path, dict]]:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    yield workdir, run(workdir, count=1, devices=2)


@pytest.mark.parametrize(("resident", "methods"), [("yes", "erm,group_dro"), ("no", "erm,")])
def test_two_processes_give_what_one_gives_with_two_devices(alone, tmp_path, resident, methods):
    # All on "data", so that every batch is shared by both processes.
    words = ("--data.resident", resident, "--methods", methods, "--train.mesh-member", "1", "--train.mesh-data", "2")
    together = run(tmp_path / "run", *words, count=2)
    same(alone[1], together)
    expected, found = losses(alone[0]), losses(tmp_path / "run")
    assert found.keys() == {key for key in expected if key[0] in methods}
    np.testing.assert_allclose(list(found.values()), [expected[key] for key in found], rtol=2e-4)
    assert together["environment"]["process_count"] == 2


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    """Two processes are stopped between checkpoints; one process, and then what it leaves, ends the run as it would have ended."""
    short = {**CONFIG, "methods": ("erm",), "train": {**CONFIG["train"], "checkpoint_every": 2}}
    with Started(tmp_path / "run", ("train", "--train.mesh-data", "2", "--train.mesh-member", "1"), count=2, config=short) as started:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "run" / "checkpoints").glob("erm/2")) and time.monotonic() < deadline:
            time.sleep(0.02)
        started.processes[1].send_signal(signal.SIGTERM)  # only one of them is told
        ended = started.end()
    assert [code for code, _ in ended] in ([143, 143], [0, 0]), ended  # 0: it was done before the signal came
    same(alone[1], run(tmp_path / "run", count=1, config=short))
    expected, found = losses(alone[0]), losses(tmp_path / "run")
    np.testing.assert_allclose(list(found.values()), [expected[key] for key in found], rtol=2e-4)


def test_a_workdir_of_another_run_is_refused_by_all(alone, tmp_path):
    with Started(alone[0], ("--train.learning-rate", "0.5"), count=2) as started:
        ended = started.end()
    assert [code for code, _ in ended] == [2, 2], ended
    assert "holds another run (train.learning_rate" in ended[0][1] and "the first process cannot use workdir" in ended[1][1]
    assert all("Traceback" not in text for _, text in ended)


def test_without_other_processes_the_reason_is_told(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plain(CONFIG)))
    command = [sys.executable, "-m", "cimrl_jax.main", "--config", "tiny.yaml", "--train.distributed"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMPI", "JAX_COORD"))}
    found = subprocess.run(command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2 and found.stderr.startswith("error: train.distributed: cannot join the other processes"), found.stderr
    assert "JAX_COORDINATOR_ADDRESS" in found.stderr and found.stderr.count("\n") == 1


def test_an_error_in_one_process_ends_all(tmp_path):
    """Who waits in a collective for one that is gone is ended by JAX itself, once its heartbeat is missed."""
    with Started(tmp_path / "run", ("train", "--train.steps", "100000"), count=2, config={**CONFIG, "methods": ("erm",)}) as started:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        metrics = tmp_path / "run" / "metrics.jsonl"
        metrics.unlink()
        metrics.mkdir()  # which the first cannot append to
        ended = started.end()
    assert ended[0][0] in (1, 2) and ended[1][0] != 0, ended
