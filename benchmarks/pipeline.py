"""How fast pictures come from the disk: against the bare decoder, prepared against raw, and how long training waits. One JSON line each.

Command: python benchmarks/pipeline.py [raw] [prepared] [digits] [--folder DIR] [--pictures 400] [--size 224] > benchmarks/results/pipeline.jsonl

  raw       pictures a second of the whole way (listing -> order -> grain's threads -> a chunk of batches [k, 1, b, size, size, 3] on the device),
            relative to a pool of as many threads that does nothing but decode (simplejpeg) and resize (Pillow) the same files, held in memory.
  prepared  the same way from a prepared folder, as memory maps and as records, relative to the raw files.
  digits    the share of the time of training on configs/digits.py that the next chunk of steps waits for its data: held on the device, and streamed.

Pictures are smooth noise of 500 x 375 pixels (JPEG, quality 90), or those in --folder. All sides use as many threads as there are cores. Figures are
medians over rounds in which every side runs once, so that whatever else the machine does falls on all alike; ratios, not rates, are the result.
Where other programs share the cores, the ratio of processor time says more: it counts what this one worked.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cimrl_jax.assembly import assemble
from cimrl_jax.config import load
from cimrl_jax.data import listing, pipeline, prepared
from cimrl_jax.data.source import Dataset, Source
from cimrl_jax.errors import UserError
from cimrl_jax.report.results import environment
from cimrl_jax.train import loop
from cimrl_jax.train.feed import Feed
from cimrl_jax.train.mesh import make_mesh

ROOT = pathlib.Path(__file__).parents[1]
ROUNDS, BATCH, CHUNK = 9, 64, 25
"""A round is a chunk of steps."""
WIDTH, HEIGHT, QUALITY = 500, 375, 90
FORMS: dict[str, tuple[Any, Any]] = {"map": ("map", "raw"), "records": ("records", "raw"), "jpeg": ("records", "jpeg")}
DIGITS = {"methods": "erm,cimrl", "seeds": "0,", "sweep": "none", "evaluate.ceiling": False}
CHUNKS = 3
"""Chunks of steps that are timed."""


def paint(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """JPEG files of smooth noise."""
    from PIL import Image

    files = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        small = np.random.default_rng(number).integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), np.uint8)
        Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, quality=QUALITY)
    return files


def dataset_of(files: Sequence[pathlib.Path], size: int) -> Dataset:
    """The pictures as a data set that is read from its files; one in ten each is for validation and test."""
    rows = np.arange(len(files))
    parts = {"validation": rows[::10], "test": rows[1::10], "train": rows[rows % 10 > 1]}
    columns: dict[str, listing.Column] = {"image": listing.Pictures(files)}
    names = ("even", "odd")
    own = listing.Listing("pictures", columns, rows % 2, names, parts, origins=[f"row {row}" for row in rows], notes="", group_names=names)
    return listing.assemble(own, listing.Options(size=size), held=0)


def through(source: Source) -> Callable[[], None]:
    """Pictures come out as a chunk of batches on the device."""
    feed = Feed(
        source,
        seeds=(0,),
        batch_size=BATCH,
        chunk=CHUNK,
        mesh=make_mesh(members=1, batch_size=BATCH),
        needs_groups=False,
        resident="no",
    )
    done = 0

    def run() -> None:
        nonlocal done
        jax.block_until_ready(feed(done, CHUNK))
        done += CHUNK

    return run


def bare(files: Sequence[pathlib.Path], size: int) -> Callable[[], None]:
    """As many pictures are decoded and resized, and no more."""
    import simplejpeg
    from PIL import Image, ImageOps

    contents = [file.read_bytes() for file in files]

    def one(number: int) -> np.ndarray:
        picture = Image.fromarray(simplejpeg.decode_jpeg(contents[number % len(contents)]))
        return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BOX))

    def run() -> None:
        with concurrent.futures.ThreadPoolExecutor(pipeline.cores()) as pool:
            for _ in pool.map(one, range(CHUNK * BATCH)):
                pass

    return run


class Speed(NamedTuple):
    """Pictures a second, of the clock's time and of one processor's time."""

    rate: float
    of_processor: float


def rounds(sides: dict[str, Callable[[], None]]) -> list[dict[str, Speed]]:
    def timed(run: Callable[[], None]) -> Speed:
        began, worked = time.perf_counter(), time.process_time()
        run()
        return Speed(CHUNK * BATCH / (time.perf_counter() - began), CHUNK * BATCH / (time.process_time() - worked))

    return [{name: timed(run) for name, run in sides.items()} for _ in range(ROUNDS + 1)][1:]  # the first warms up


def compared(name: str, found: list[dict[str, Speed]], side: str, base: str, **more: Any) -> dict[str, Any]:
    ratios = [speed[side].rate / speed[base].rate for speed in found]
    return {
        "name": f"pipeline/{name}",
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "ratio_of_processor_time": statistics.median(speed[side].of_processor / speed[base].of_processor for speed in found),
        "pictures_per_second": {own: statistics.median(speed[own].rate for speed in found) for own in (side, base)},
        "threads": pipeline.cores(),
        **more,
        "environment": environment(),
    }


def of_pictures(chosen: Sequence[str], files: Sequence[pathlib.Path], size: int, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The lines raw and prepared, as they are chosen."""
    more = {"size": size, "batch_size": BATCH, "pictures": len(files), "bytes": round(statistics.mean(file.stat().st_size for file in files))}
    raw = dataset_of(files, size)
    sides = {"raw": through(raw.splits["train"])}
    if "raw" in chosen:
        yield compared("raw", rounds(sides | {"bare": bare(files, size)}), "raw", "bare", **more)
    if "prepared" in chosen:
        for name, (form, picture) in FORMS.items():
            prepared.write(raw, folder / name, form=form, picture=picture)
            sides[name] = through(prepared.read(folder / name, held=0).splits["train"])
        found = rounds(sides)
        for name in FORMS:
            yield compared(f"prepared/{name}", found, name, "raw", **more)


def of_digits() -> Iterator[dict[str, Any]]:
    """The lines of training: one per method, and whether its data is held or streamed."""
    config = load(str(ROOT / "configs/digits.py"), DIGITS)
    for resident in ("yes", "no"):
        for program in assemble(config).programs:
            yield waiting(program, resident)


def waiting(program: loop.Program, resident: Any) -> dict[str, Any]:
    """One member's first stage, fed as the training loop feeds it."""
    program = dataclasses.replace(program, resident=resident)
    feed, states, chunk = program.feed(), loop.fresh(program), program.chunk
    compiled = loop.compile_chunk(program, 0, states, feed)
    waited, whole = [], []
    for number in range(CHUNKS + 2):
        began = time.perf_counter()
        data = feed(number * chunk, chunk)
        waited.append(time.perf_counter() - began)
        states, metrics = compiled.run(states, data, chunk)
        del data
        feed.prepare((number + 1) * chunk, chunk)
        jax.device_get(metrics)
        whole.append(time.perf_counter() - began)
    feed.close()
    return {
        "name": f"pipeline/digits/{program.name}/{'held' if feed.resident else 'streamed'}",
        "waiting_share": sum(waited[2:]) / sum(whole[2:]),  # the first chunks warm up
        "steps_per_second": CHUNKS * chunk / sum(whole[2:]),
        "steps": CHUNKS * chunk,
        "batch_size": program.batch_size,
        "environment": environment(),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", choices=["raw", "prepared", "digits", []])
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args(arguments)
    chosen = given.lines or ["raw", "prepared", "digits"]
    with tempfile.TemporaryDirectory() as temporary:
        if {"raw", "prepared"} & set(chosen):
            folder = pathlib.Path(temporary)
            files = sorted(given.folder.rglob("*.jp*g"))[: given.pictures] if given.folder else paint(folder, given.pictures)
            for record in of_pictures(chosen, files, given.size, folder):
                print(json.dumps(record), flush=True)
        if "digits" in chosen:
            for record in of_digits():
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
