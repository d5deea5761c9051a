"""What passes before training begins: import, --help, first compile, cached compile, and whole runs. One JSON line each.

Command: python benchmarks/startup.py [import] [run] [--config configs/synthetic.py] [--rounds 5] > benchmarks/results/startup.jsonl

  import   fresh processes in turns: bare Python, `import jax`, `import cimrl_jax`, what training imports, and `python -m cimrl_jax.main --help`.
  run      ERM and CIMRL for a few steps, one seed, from the command to results.json and the page, with nothing in the compile cache and then
           with everything: the whole time, that of compiling (tracing included) and that of the steps.

"ratio" of an import is to bare Python's time, that of the cached run to the first one's.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cimrl_jax.errors import UserError
from cimrl_jax.report.results import environment

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = {
    "python": ["-c", "pass"],
    "jax": ["-c", "import jax"],
    "cimrl_jax": ["-c", "import cimrl_jax"],
    "training": ["-c", "import cimrl_jax.experiment"],
    "help": ["-m", "cimrl_jax.main", "--help"],
}
STEPS = 20
RUNS = 2
"""With everything in the cache."""


def seconds_of(words: Sequence[str], cache: pathlib.Path | None = None) -> float:
    """The whole time of a Python process.

    Raises:
      UserError: it failed.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith("JAX_PERSISTENT_CACHE")}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if cache is not None:
        environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environ, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise UserError(f"python {' '.join(words)} ended with {done.returncode}: {done.stderr[-1000:]}")
    return seconds


def imports(rounds: int) -> Iterator[dict[str, Any]]:
    """One record per command."""
    times = [{name: seconds_of(words) for name, words in COMMANDS.items()} for _ in range(rounds + 1)][1:]  # the first fills the disk's cache
    for name in COMMANDS:
        ratios = [own[name] / own["python"] for own in times]
        yield {
            "name": f"startup/import/{name}",
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
            "seconds": statistics.median(own[name] for own in times),
            "seconds_quartiles": statistics.quantiles([own[name] for own in times], n=4)[::2],
            "environment": environment(),
        }


def runs(config: str, steps: int, words: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The first run and those that follow it."""
    with tempfile.TemporaryDirectory() as temporary:
        cache, found = pathlib.Path(temporary) / "cache", []
        for number in range(1 + RUNS):
            workdir = pathlib.Path(temporary) / f"run{number}"
            chosen = ("--methods", "erm,cimrl", "--seeds", "1", "--train.steps", str(steps), "--evaluate.ceiling", "false", *words)
            whole = seconds_of(["-m", "cimrl_jax.main", "--config", config, *chosen, "--workdir", str(workdir)], cache)
            clocks = [own["train"] for own in json.loads((workdir / "results.json").read_text())["runs"]]
            found.append({"whole": whole, "compiling": sum(own["compile_seconds"] for own in clocks), "steps": sum(own["seconds"] for own in clocks)})
    cached = {key: statistics.median(own[key] for own in found[1:]) for key in found[0]}
    for name, own in (("first", found[0]), ("cached", cached)):
        yield {
            "name": f"startup/run/{name}",
            "ratio": own["whole"] / found[0]["whole"],
            "seconds": own["whole"],
            "compile_seconds": own["compiling"],
            "step_seconds": own["steps"],
            "elsewhere_seconds": own["whole"] - own["compiling"] - own["steps"],
            "config": pathlib.Path(config).name,
            "steps": steps,
            "environment": environment(),
        }


def main(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The records that the command line's words ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", choices=["import", "run", []])
    parser.add_argument("--config", default=str(ROOT / "configs/synthetic.py"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="in one round, a few steps")
    given = parser.parse_args(arguments)
    if "import" in (given.lines or ["import"]):
        yield from imports(2 if given.small else given.rounds)
    if "run" in (given.lines or ["run"]):
        yield from runs(given.config, 2 if given.small else given.steps)


if __name__ == "__main__":
    try:
        for record in main(sys.argv[1:]):
            print(json.dumps(record), flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
