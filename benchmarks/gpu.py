"""What a GPU makes of the fused step: share of the matrix rate, kernels, memory, members per second. One JSON line each, in under ten minutes.

Command: python benchmarks/gpu.py [steps] [members] [twin] > benchmarks/results/gpu.jsonl

  steps    ViT-B/16 and BERT-base (random weights), bfloat16, the batch that fills the card: time, and FLOP/s as a share of a big matrix product's
           on the same card, for ERM, GroupDRO and CIMRL; what the compiled program holds (cuDNN attention, donated buffers), the matrix products
           left in float32, the time by class of kernel, and the wait for pictures that come from the host.
  members  1, 8, 64, 256 members of the small model at once, against one PyTorch eager run of the same steps: "ratio" is PyTorch's time for one
           over ours for all of them, so 1 means all in the time of one.
  twin     benchmarks/torch_twin.py beside it: CIMRL and ERM at ViT-B and BERT-base size in PyTorch, compiled.

Model FLOPs are the matrix products of the step as written, loops unrolled, 2 a multiply-add; recomputation and all else are not counted.
Each line runs in a process of its own, since two frameworks share the card. Without a GPU the same is done on sizes that mean nothing, under names
gpu/small/..., and every figure that needs one is a record {"name": ..., "unmeasured": why}.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import importlib
import importlib.util
import itertools
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cimrl_jax.data.source import ArraySource
from cimrl_jax.data.views import make_perturb
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import efficiency
from cimrl_jax.nn.model import build_model
from cimrl_jax.options import component, make_options
from cimrl_jax.report.results import environment
from cimrl_jax.train import step as fused
from cimrl_jax.train.feed import Feed
from cimrl_jax.train.mesh import make_mesh
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.types import Batch, Feature, Model, Spec

ROOT = pathlib.Path(__file__).parents[1]
METHODS = ("cimrl", "erm", "group_dro")
"""The dearest first: what batch fits it, fits all."""
LIMITS = {"steps": 330, "members": 130, "twin": 130}
"""Seconds that a line may take."""
FULL = 0.9
"""The share of the card's memory to fill."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A vision transformer and a BERT under CIMRL's layers."""

    image: int
    patch: int
    words: int
    width: int
    depth: int
    heads: int
    dtype: str
    attention: str
    batches: tuple[int, ...]
    """What is tried, the largest that fits first."""
    classes: int = 2
    vocabulary: int = 30522
    rounds: int = 5
    steps: int = 4
    matrix: int = 8192
    """Side of the matrix product whose rate all is measured against."""


BASE = Size(224, 16, 64, 768, 12, 12, "bfloat16", "cudnn", (512, 384, 256, 192, 128, 96, 64, 32))
SMALL = Size(16, 8, 6, 16, 1, 2, "bfloat16", "auto", (8,), vocabulary=20, rounds=2, steps=1, matrix=128)
MEMBERS, SMALL_MEMBERS = (1, 8, 64, 256), (1, 2)
METHODS_OF_MEMBERS = ("erm", "cimrl")
NEEDED = {
    "steps": [f"gpu/{method}/{what}" for method in METHODS for what in ("mfu", "types", "donation", "cudnn", "kernels")]
    + ["gpu/matrix_rate", "gpu/input"],
    "members": [f"gpu/members/{count}/{method}" for count in MEMBERS for method in METHODS_OF_MEMBERS],
    "twin": ["gpu/twin/cimrl/compiled", "gpu/twin/erm/compiled"],
}
"""What only a GPU can tell."""


def features(size: Size) -> dict[str, Feature]:
    words = tuple(f"word{i}" for i in range(size.vocabulary))
    return {"image": Feature("image", (size.image, size.image, 3), "uint8"), "text": Feature("text", (size.words,), "int32", vocabulary=words)}


def build(size: Size) -> Model:
    shared = {"hidden_size": size.width, "num_layers": size.depth, "num_heads": size.heads, "intermediate_size": 4 * size.width}
    sections = {
        "image": {"encoder": "hf_vit", "patch_size": size.patch, "attention": size.attention, **shared},
        "text": {"encoder": "hf_bert", "attention": size.attention, **shared},
    }
    return build_model(
        features=features(size),
        num_classes=size.classes,
        dim=size.width,
        dtype=size.dtype,
        heads=size.heads,
        mlp_ratio=4.0,
        dropout=0.0,
        fusion_layers=2,
        connect_every=2,
        causal_layers=1,
        modalities=sections,
        views=make_perturb,
    )


def source(size: Size, rows: int) -> ArraySource:
    rng = np.random.default_rng(0)
    label = (np.arange(rows) % size.classes).astype(np.int32)
    pixels = rng.integers(0, 256, (rows, size.image, size.image, 3), np.uint8)
    words = rng.integers(2, size.vocabulary, (rows, size.words), np.int32)
    return ArraySource(inputs={"image": pixels, "text": words}, label=label, group=2 * label + rng.integers(0, 2, rows).astype(np.int32))


class Step(NamedTuple):
    """A method's first stage on one member."""

    lower: Callable[[int], Any]
    """Batch size -> the chunk of one step, lowered, its states donated."""
    states: Callable[[], Any]
    flops: Callable[[int], float]
    """Batch size -> the step's matrix operations as written."""


def prepare(method: str, size: Size, own: ArraySource) -> Step:
    """The method's step on the model: members are vmapped and steps looped over, as in training."""
    module = component("method", method)
    record, model = module.build(make_options(module.Options, {}, f"method.{method}")), build(size)
    groups = tuple(np.bincount(own.group, minlength=2 * size.classes).tolist())
    spec = Spec(
        size.classes,
        2 * size.classes,
        len(own),
        1000,
        model.slots,
        size.width,
        tuple(np.bincount(own.label, minlength=size.classes).tolist()),
        group_counts=groups,
        group_attribute=(0, 1) * size.classes,
        init_model=model.init,
    )
    optimizer = make_optimizer(steps=1000, warmup=0.1, schedule="cosine", clip_norm=1.0)
    hyper = {**record.hyper, "learning_rate": 1e-4, "weight_decay": 1e-4}
    init = functools.partial(fused.init_member, hyper=hyper, model=model, method=record, spec=spec, optimizer=optimizer)

    def states() -> Any:
        return jax.jit(jax.vmap(lambda seed: init(seed)))(jnp.zeros(1, jnp.uint32))

    def chunk(model: Model) -> Callable[..., Any]:
        step = fused.make_step(model, record.stages[0], optimizer, augment=False)
        return fused.make_chunk(step, lambda data, k: data)

    def shapes(rows: int) -> tuple[Any, Any, Any]:
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first(own, rows))
        return jax.eval_shape(states), data, jax.ShapeDtypeStruct((), jnp.int32)

    def flops(rows: int) -> float:
        # As XLA's own attention writes it: a fused kernel hides its products.
        return efficiency.product_flops(chunk(build(dataclasses.replace(size, attention="auto"))), *shapes(rows))

    return Step(lambda rows: jax.jit(chunk(model), donate_argnums=0).lower(*shapes(rows)), states, flops)


def first(own: ArraySource, rows: int) -> Batch:
    """A batch of one member `[1, rows, ...]`, on the device."""
    index = np.arange(rows)
    fields = {"label": own.label[:rows], "group": own.group[:rows], "index": index.astype(np.int32), "weight": np.ones(rows, np.float32)}
    return jax.tree.map(lambda x: jnp.asarray(x)[None], Batch(**own.load(index), **fields))


def products(text: str) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(type, left shape, right shape) of every matrix product in a lowered program's text, as it stands there: one in a loop's body once."""
    operand = r"tensor<((?:\d+x)*)(\w+)>"
    found = re.findall(rf"stablehlo\.dot_general .*: \({operand}, {operand}\)", text)
    return [(kind, _shape(left), _shape(right)) for left, kind, right, _ in found]


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x") if size)


def donated(text: str) -> int:
    """How many of a compiled program's outputs take an argument's memory."""
    head = text.partition("\n")[0]
    return len(re.findall(r"(?:may|must)-alias", head))


def limit() -> int | None:
    """Bytes of the device's memory, where it says."""
    return ((jax.devices()[0].memory_stats() or {}) if jax.default_backend() == "gpu" else {}).get("bytes_limit")


def fitting(step: Step, size: Size) -> tuple[int, ...]:
    """Of the batches those that may fit the card, the largest first, by the memory of the smallest as compiled."""
    room, few = limit(), size.batches[-1]
    if room is None or len(size.batches) == 1:
        return size.batches
    peak = efficiency.cost(step.lower(few).compile())["peak_bytes"] or 0.0
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(step.states)) if jnp.issubdtype(x.dtype, jnp.floating))
    fixed = min(state * 4 / 3, peak)  # parameters and two moments, and a gradient
    return tuple(rows for rows in size.batches if fixed + (peak - fixed) * rows / few <= FULL * room) or (few,)


def begin(step: Step, own: ArraySource, batches: Sequence[int]) -> tuple[int, dict[str, float], Any, Any, Any]:
    """(the first batch size that runs, seconds of trace and compile, the compiled chunk, its states, its data).

    Raises:
      JaxRuntimeError: not even the last one does.
    """
    for rows in batches:
        began = time.perf_counter()
        lowered = step.lower(rows)
        traced, began = time.perf_counter() - began, time.perf_counter()
        compiled = lowered.compile()
        seconds = {"trace_seconds": traced, "compile_seconds": time.perf_counter() - began}
        states, data = step.states(), first(own, rows)
        try:
            states, metrics = compiled(states, data, jnp.int32(1))
            jax.block_until_ready((states, metrics))
            return rows, seconds, compiled, states, data
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or rows == batches[-1]:
                raise
            del states, data, compiled
    raise UserError("no batch size to try; give at least one")


CLASSES = {
    "attention": r"fmha|flash|cudnn.*(sdpa|mha)",
    "matrix product": r"gemm|nvjet|cutlass|xmma|cublas|triton_.*dot|\bdot|custom-call\.dot",
    "convolution": r"conv(?!ert)",
    "exchange": r"nccl|all-reduce|all-gather|reduce-scatter",
    "copy": r"memcpy|copy|transpose|concatenate|slice|gather|scatter",
    "reduction": r"reduce",
    "other fused": r"fusion|loop_|input_|wrapped",
}


def kernels(folder: pathlib.Path) -> dict[str, float]:
    """Share of the devices' busy time by class of kernel, from a profiler's trace in the folder; empty where none can be read."""
    busy: collections.Counter[str] = collections.Counter()
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            gpu = plane.name.startswith("/device:GPU")
            for line in plane.lines:
                if gpu and not line.name.startswith("Stream") or not gpu and "XLA" not in line.name:
                    continue
                for event in line.events:
                    busy[classify(event.name)] += event.duration_ns
    whole = sum(busy.values())
    return {kind: spent / whole for kind, spent in busy.most_common()} if whole else {}


def classify(name: str) -> str:
    return next((kind for kind, pattern in CLASSES.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def steps(size: Size, prefix: str, *, gpu: bool, methods: Sequence[str] = METHODS) -> Iterator[dict[str, Any]]:
    """The fused step of each method, the dearest first."""
    kept: dict[str, Any] = {"batch_dtype": size.dtype, "environment": environment()}
    rate = efficiency.matrix_rate(size=size.matrix, dtype=size.dtype)
    yield {"name": f"{prefix}/matrix_rate", "flops_per_second": rate, "side": size.matrix, **kept}
    own = source(size, max(size.batches) * (4 if gpu else 1))
    prepared = {method: prepare(method, size, own) for method in methods}
    batches = fitting(prepared[methods[0]], size)
    for method, step in prepared.items():
        batch, compiling, compiled, states, data = begin(step, own, batches)
        batches, text = (batch,), compiled.as_text()  # the others at the size that fits the dearest
        bytes_of_state = sum(x.nbytes for x in jax.tree.leaves(states) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
        aliased = getattr(compiled.memory_analysis(), "alias_size_in_bytes", None)
        leaves = len(jax.tree.leaves(states))
        times = []
        for _ in range(size.rounds + 1):
            began = time.perf_counter()
            states, metrics = compiled(states, data, jnp.int32(size.steps))
            jax.block_until_ready((states, metrics))
            times.append((time.perf_counter() - began) / size.steps)
        seconds, flops = statistics.median(times[1:]), step.flops(batch)
        yield {
            "name": f"{prefix}/{method}/mfu",
            "ratio": efficiency.mfu(flops, seconds, rate),
            "ratio_quartiles": [flops / own / rate for own in reversed(statistics.quantiles(times[1:], n=4)[::2])],
            "seconds": seconds,
            "examples_per_second": batch / seconds,
            "batch_size": batch,
            "flops": flops,
            "peak_bytes": efficiency.cost(compiled)["peak_bytes"],
            "most_bytes_in_use": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") if gpu else None,
            **compiling,
            "loss": float(metrics["loss"][0]),
            **kept,
        }
        whole = [own for own in products(step.lower(batch).as_text()) if own[0] == "f32"]
        yield {
            "name": f"{prefix}/{method}/types",
            "ratio": float(len(whole)),
            "float32": sorted(({"left": left, "right": right} for _, left, right in whole), key=_entries, reverse=True)[:12],
            "note": "matrix products that are in float32 as lowered; the largest",
            **kept,
        }
        share = aliased / bytes_of_state if aliased else None
        yield {"name": f"{prefix}/{method}/donation", "ratio": share, "leaves": leaves, "aliased": donated(text), **kept}
        if gpu:
            calls = collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text))
            found = sum(count for name, count in calls.items() if "fmha" in name)
            note = "calls of cuDNN's attention in the compiled program"
            yield {"name": f"{prefix}/{method}/cudnn", "ratio": float(found), "custom_calls": dict(calls), "note": note, **kept}
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                states, metrics = compiled(states, data, jnp.int32(1))
                jax.block_until_ready((states, metrics))
            shares = kernels(pathlib.Path(folder))
        record = {"shares": shares} if shares else {"unmeasured": "the profiler's trace names no kernel"}
        yield {"name": f"{prefix}/{method}/kernels", "ratio": shares.get("matrix product"), **record, **kept}
        if method == methods[0]:
            yield stall(f"{prefix}/input", method, size, own, batch, compiled, states, seconds, kept)
        del states, compiled, metrics, data


def _entries(product: Mapping[str, tuple[int, ...]]) -> int:
    return math.prod(product["left"]) + math.prod(product["right"])


def stall(
    name: str, method: str, size: Size, own: ArraySource, batch: int, compiled: Any, states: Any, seconds: float, kept: Mapping[str, Any]
) -> dict[str, Any]:
    """The share of training's time that the next batch is waited for, when pictures come from the host step by step."""
    if importlib.util.find_spec("grain") is None:
        return {"name": name, "unmeasured": "grain, which streams, is not installed here"}
    mesh = make_mesh(members=1, batch_size=batch)
    feed = Feed(own, seeds=(0,), batch_size=batch, chunk=1, mesh=mesh, needs_groups=False, resident="no")
    waited, whole = [], []
    for number in range(2 + size.rounds):
        began = time.perf_counter()
        data = jax.tree.map(lambda x: x[0], feed(number, 1))
        waited.append(time.perf_counter() - began)
        states, metrics = compiled(states, data, jnp.int32(1))
        feed.prepare(number + 1, 1)
        jax.device_get(metrics)
        whole.append(time.perf_counter() - began)
    feed.close()
    return {
        "name": name,
        "ratio": sum(waited[2:]) / sum(whole[2:]),
        "seconds": statistics.median(whole[2:]),
        "seconds_without": seconds,
        "batch_size": batch,
        "note": f"the share of the time that a step of {method} waits for its pictures",
        **kept,
    }


def members(counts: Sequence[int], prefix: str, *, gpu: bool) -> Iterator[dict[str, Any]]:
    """Many members of the small model, against one PyTorch run."""
    try:
        twin = importlib.import_module("torch_twin")
    except ImportError as error:
        for count, method in itertools.product(counts, METHODS_OF_MEMBERS):
            yield {"name": f"{prefix}/members/{count}/{method}", "unmeasured": f"torch_twin.py cannot be imported: {error}"}
        return
    shape = {
        "dim": 48,
        "heads": 4,
        "depth": 2 if gpu else 1,
        "text_depth": 1,
        "image": 28,
        "patch": 7,
        "words": 10,
        "vocabulary": 100,
        "mlp_ratio": 2.0,
    }
    size = twin.Size("small", batch=64 if gpu else 8, **shape)
    rounds, looped = (5, 20) if gpu else (2, 1)
    for method in METHODS_OF_MEMBERS:
        one = twin._twin_call(method, size, "cuda" if gpu else "cpu", compiled=False)
        torch_times = [one(looped) for _ in range(rounds + 1)][1:]
        batch = next(twin.batches(size))
        for count in counts:
            side = twin.ours(method, size)
            states = jax.tree.map(lambda x: jnp.stack([x] * count), side.state)  # noqa: B023
            data = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), batch)  # noqa: B023
            chunk = fused.make_chunk(side.step, lambda data, k: data)
            began = time.perf_counter()
            compiled = jax.jit(chunk, donate_argnums=0).lower(states, data, jnp.int32(1)).compile()
            compile_seconds, times = time.perf_counter() - began, []
            for _ in range(rounds + 1):
                began = time.perf_counter()
                states, metrics = compiled(states, data, jnp.int32(looped))
                jax.block_until_ready((states, metrics))
                times.append((time.perf_counter() - began) / looped)
            seconds, torch_seconds = statistics.median(times[1:]), statistics.median(torch_times)
            yield {
                "name": f"{prefix}/members/{count}/{method}",
                "ratio": torch_seconds / seconds,
                "ratio_quartiles": [torch_seconds / own for own in reversed(statistics.quantiles(times[1:], n=4)[::2])],
                "seconds": {"ours": seconds, "torch_one": torch_seconds},
                "member_steps_per_second": count / seconds,
                "compile_seconds": compile_seconds,
                "peak_bytes": efficiency.cost(compiled)["peak_bytes"],
                "size": dataclasses.asdict(size),
                "environment": environment(),
            }
            del states, compiled


def twin(prefix: str, *, gpu: bool) -> Iterator[dict[str, Any]]:
    """Ours against PyTorch, large."""
    try:
        module = importlib.import_module("torch_twin")
    except ImportError as error:
        yield {"name": f"{prefix}/twin", "unmeasured": f"torch_twin.py cannot be imported: {error}"}
        return
    if not gpu:
        yield {"name": f"{prefix}/twin", "unmeasured": "on a CPU this is torch_twin.py's own"}
        return
    for record in module.measure(module.GPU[-1:], ("cimrl", "erm"), ("compiled",), rounds=5):
        _, _, method, kind = record["name"].split("/")
        yield record | {"name": f"{prefix}/twin/{method}/{kind}"}


def here(line: str) -> Iterator[dict[str, Any]]:
    """The records of one line, in this process."""
    gpu = jax.default_backend() == "gpu"
    prefix = "gpu" if gpu else "gpu/small"
    if not gpu:
        for name in NEEDED[line]:
            yield {"name": name, "unmeasured": "no GPU"}
    if line == "steps":
        yield from steps(BASE if gpu else SMALL, prefix, gpu=gpu)
    elif line == "members":
        yield from members(MEMBERS if gpu else SMALL_MEMBERS, prefix, gpu=gpu)
    else:
        yield from twin(prefix, gpu=gpu)


def apart(line: str) -> Iterator[dict[str, Any]]:
    """The records of one line from a process of its own, as far as it gets in its time."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environ = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92" if line == "steps" else "0.5", **os.environ, "PYTHONPATH": paths}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, __file__, line, "--here"], env=environ, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            out, _ = process.communicate(timeout=LIMITS[line])
            ended = f"it ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            ended = f"it was not done after {LIMITS[line]} s"
        said.seek(0)
        why = said.read().strip().splitlines()
    found = [json.loads(row) for row in out.splitlines() if row.startswith("{") and row.endswith("}")]
    yield from found
    if process.returncode:
        told = {record["name"] for record in found}
        reason = f"{ended}: {why[-1] if why else 'it said nothing'}"
        missing = [name for name in NEEDED[line] if not any(own.startswith(name) for own in told)]
        for name in missing or [f"gpu/{line}"]:
            yield {"name": name, "unmeasured": reason}


def main(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The records that the command line's words ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", choices=[*LIMITS, []])
    parser.add_argument("--here", action="store_true", help="in this process, without a limit")
    given = parser.parse_args(arguments)
    for line in given.lines or LIMITS:
        yield from (here if given.here else apart)(line)


if __name__ == "__main__":
    try:
        for record in main(sys.argv[1:]):
            print(json.dumps(record), flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
