"""Runs every benchmark into benchmarks/results/, and prints one table of ratios. It stands in the README too, between two marks.

Command: python benchmarks/run.py [--only step_cost,sweep] [--quick] [--table] [--readme]

  --only    these scripts, by name. Without it, all that need neither a folder of pictures nor weights.
  --quick   sizes that mean nothing, into a folder of their own, to see that everything runs.
  --table   runs nothing: prints the table of what was measured before.
  --readme  also writes the table into README.md.

A script's records replace those of its last run once it has ended well. What was measured with other versions or on another device says so itself:
every record has its environment. A target that no record speaks of is in the table as "not measured".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
QUICK = ROOT / "runs/benchmarks"
MARKS = ("<!-- speed: python benchmarks/run.py --table --readme -->", "<!-- speed ends -->")
METHODS = ",".join(sorted(file.stem for file in (ROOT / "cimrl_jax/methods").glob("*.py") if file.stem not in ("__init__", "base")))


class Script(NamedTuple):
    """A benchmark and its words."""

    words: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = ()
    """None: there is no small form."""
    file: str = ""
    """Another script than that of the name."""
    asked: bool = False
    """Runs only if --only names it: it needs what not everyone has."""


SCRIPTS = {
    "startup": Script(quick=("--small",)),
    "step_cost": Script(("--config", "configs/digits.py", "--methods", METHODS), quick=None),
    "step_count": Script(("count", "--config", "configs/digits.py", "--methods", METHODS), None, "step_cost"),
    "torch_twin": Script(quick=None),
    "sweep": Script(quick=("--small",)),
    "scaling": Script(quick=("--small",)),
    "gpu": Script(quick=()),
    "pipeline": Script(("digits",), None),
    "features": Script(quick=None, asked=True),
}


class Target(NamedTuple):
    """What a record should say."""

    name: str
    """Of the record."""
    what: str
    target: str
    met: tuple[float, float] | None = None
    """The lowest and the highest value that meet it; None: there is no target."""
    value: str = "ratio"
    """The record's key."""
    spread: str = "ratio_quartiles"


UP = math.inf
TARGETS = (
    Target("step_cost/cimrl", "a CIMRL step's operations, ERM = 1", "<= 3.40", (0, 3.40), "flops_ratio"),
    Target("step_cost/cimrl", "a CIMRL step's time, ERM = 1", "–", None, "time_ratio", "time_ratio_quartiles"),
    Target("step_cost/cimrl", "that time over those operations", "<= 1.05", (0, 1.05), "time_over_flops", ""),
    Target("step_cost/cimrl_economy", "its operations with `economy`, ERM = 1", "<= 2.40", (0, 2.40), "flops_ratio"),
    Target("step_cost/cimrl_economy", "its time with `economy`, ERM = 1", "–", None, "time_ratio", "time_ratio_quartiles"),
    Target("step_cost/group_dro", "a GroupDRO step's time, ERM = 1", "–", None, "time_ratio", "time_ratio_quartiles"),
    Target("step_cost/mediation_moe", "a step of mediation_moe's time, ERM = 1", "–", None, "time_ratio", "time_ratio_quartiles"),
    Target("step_cost/mediation_moe", "operations of its matrix products, loops counted as run, ERM = 1", "–", None, "product_flops_ratio", ""),
    Target("torch_twin/vit_ti+mini/cimrl/eager", "PyTorch eager's time over ours, CIMRL, ViT-Ti", ">= 1.2", (1.2, UP)),
    Target("torch_twin/vit_ti+mini/cimrl/compiled", "torch.compile's time over ours, CIMRL, ViT-Ti", ">= 1.0", (1.0, UP)),
    Target("torch_twin/vit_s+mini/cimrl/eager", "PyTorch eager's time over ours, CIMRL, ViT-S", ">= 1.2", (1.2, UP)),
    Target("torch_twin/vit_s+mini/cimrl/compiled", "torch.compile's time over ours, CIMRL, ViT-S", ">= 1.0", (1.0, UP)),
    Target("sweep/digits/processes/warm", "16 seeds in one process over 16 processes, two at once, short runs", "<= 0.5", (0, 0.5)),
    Target("sweep/digits/processes/warm", "the same at the config's own steps, reckoned", "<= 0.5", (0, 0.5), "at_config_steps.ratio"),
    Target("sweep/digits/processes/warm/in_turn", "16 seeds in one process over 16 processes, one after the other", "<= 0.5", (0, 0.5)),
    Target("sweep/digits/processes/cold", "16 seeds in one process over 16, the first of which compiles", "<= 0.5", (0, 0.5)),
    Target("sweep/digits/processes/cold/no_cache", "16 seeds in one process over 16 that all compile", "<= 0.5", (0, 0.5)),
    Target("sweep/digits/members/16", "a step of 16 members over one of a single one", "–"),
    Target("sweep/digits/members/64", "a step of 64 members over one of a single one", "–"),
    Target("sweep/features/processes", "64 members on kept features over one, whole processes", "<= 6", (0, 6)),
    Target("sweep/features/members/64", "a step of 64 members on kept features over one", "–"),
    Target("sweep/grid", "compiles of CIMRL's whole grid of weights", "1", (1, 1), "compiles", ""),
    Target("scaling/cimrl/batch", "a CIMRL step's time, batch x 4", "–"),
    Target("scaling/cimrl/tokens", "a CIMRL step's time, tokens x 4", "–"),
    Target("scaling/cimrl/modalities", "a CIMRL step's time, modalities x 4", "–"),
    Target("scaling/cimrl/classes", "a CIMRL step's time, classes x 4", "–"),
    Target("scaling/cimrl/devices/data", "bytes exchanged in a CIMRL step over those of its state, batch on 4 devices", "–", spread=""),
    Target("scaling/cimrl/devices/member", "the same, members on 4 devices", "–", spread=""),
    Target("startup/import/help", "`--help`, bare Python = 1", "–"),
    Target("startup/run/cached", "a short run whose programs are compiled already over the first", "–", spread=""),
    Target("pipeline/digits/cimrl/held", "share of training's time that waits for data", "–", None, "waiting_share", ""),
    Target("gpu/cimrl/mfu", "GPU: CIMRL's FLOP/s over the matrix rate, ViT-B + BERT-base, bfloat16", ">= 0.5", (0.5, UP)),
    Target("gpu/erm/mfu", "GPU: the same of ERM", ">= 0.5", (0.5, UP)),
    Target("gpu/group_dro/mfu", "GPU: the same of GroupDRO", ">= 0.5", (0.5, UP)),
    Target("gpu/cimrl/cudnn", "GPU: calls of cuDNN's attention in the CIMRL step", ">= 1", (1, UP), spread=""),
    Target("gpu/cimrl/types", "GPU: matrix products in float32 in the CIMRL step", "0", (0, 0), spread=""),
    Target("gpu/input", "GPU: share of a step that waits for pictures", "<= 0.01", (0, 0.01), spread=""),
    Target("gpu/members/256/cimrl", "GPU: PyTorch eager's time for one small model over ours for 256", ">= 1", (1, UP)),
    Target("gpu/twin/cimrl/compiled", "GPU: torch.compile's time over ours, CIMRL, bfloat16", ">= 1.5", (1.5, UP)),
)


def run(name: str, results: pathlib.Path, *, quick: bool) -> str:
    """Runs one script; returns what went wrong, "" if nothing did. Its records come in the place of the old ones if it ended well."""
    script = SCRIPTS[name]
    words = script.quick if quick else script.words
    if words is None:
        return "it has no small form"
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    results.mkdir(parents=True, exist_ok=True)
    part = results / f"{name}.part"
    command = [sys.executable, str(ROOT / f"benchmarks/{script.file or name}.py"), *words]
    with part.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths})
    if done.returncode:
        part.unlink()
        return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    part.replace(results / f"{name}.jsonl")
    return ""


def read(results: pathlib.Path) -> dict[str, dict[str, Any]]:
    """All records by name; what two files say of one thing stands in one record."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(results.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            found[record["name"]] = found.get(record["name"], {}) | record
    return found


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row a target, and below it what they were measured on."""
    head = "| measured | what | ratio | quartiles | target | met |"
    rows = [row(target, records.get(target.name)) for target in TARGETS]
    shown = [records[target.name] for target in TARGETS if target.name in records]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, "", *_devices(shown)])


def row(target: Target, record: Mapping[str, Any] | None) -> str:
    value = None if record is None else _reach(record, target.value)
    spread = record.get(target.spread) if record and target.spread else None
    met = "–"
    if value is None:
        said = f"not measured{': ' + record['unmeasured'] if record and 'unmeasured' in record else ''}"
    else:
        said = f"{value:.3g}"
        if target.met is not None:
            met = "yes" if target.met[0] <= value <= target.met[1] else "**no**"
    quartiles = f"{spread[0]:.3g} to {spread[1]:.3g}" if spread and value is not None else ""
    return f"| `{target.name}` | {target.what} | {said} | {quartiles} | {target.target} | {met} |"


def _reach(record: Mapping[str, Any], key: str) -> float | None:
    found: Any = record
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def _devices(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for every device and set of versions that the records were measured on."""
    found: dict[str, list[str]] = {}
    for record in records:
        own = record.get("environment")
        if own:
            cores = f", {own['cpu_count']} cores" if own["backend"] == "cpu" else ""
            said = f"{own['device_kind']}{cores}; Python {own['python']}, jax {own['jax']}, flax {own['flax']}"
            found.setdefault(said, []).append(record["name"].split("/")[0])
    return [f"Measured on {said}: {', '.join(dict.fromkeys(names))}." for said, names in found.items()]


def write(text: str, file: pathlib.Path) -> None:
    """Puts the table between the marks of a document.

    Raises:
      ValueError: it has no marks.
    """
    before, begins, rest = file.read_text().partition(MARKS[0])
    _, ends, after = rest.partition(MARKS[1])
    if not begins or not ends:
        raise ValueError(f"{file} has no lines {MARKS[0]!r} and {MARKS[1]!r}; put them where the table should stand")
    file.write_text(f"{before}{begins}\n\n{text}\n\n{ends}{after}")


def main(arguments: Sequence[str]) -> int:
    """0: everything that was asked for ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=", ".join(SCRIPTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args(arguments)
    chosen = [name for name in given.only.split(",") if name] or [name for name, script in SCRIPTS.items() if not script.asked]
    unknown = [name for name in chosen if name not in SCRIPTS]
    if unknown:
        print(f"error: --only: there is no benchmark {unknown[0]!r}; choose from {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    results, failed = QUICK if given.quick else RESULTS, 0
    for name in [] if given.table else chosen:
        began = time.perf_counter()
        wrong = run(name, results, quick=given.quick)
        failed += bool(wrong) and wrong != "it has no small form"
        print(f"{name}: {wrong or f'done in {time.perf_counter() - began:.0f} s'}", file=sys.stderr, flush=True)
    text = table(read(results))
    print(text)
    if given.readme:
        try:
            write(text, ROOT / "README.md")
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
