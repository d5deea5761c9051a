"""The report: one HTML file that needs no network, made from what lies in the workdir, without JAX."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole
from cimrl_jax.report import choices, gallery, modes, results, routing, tables
from cimrl_jax.report.canvas import Picture
from cimrl_jax.report.figures import figures
from cimrl_jax.report.results import CEILING, Results
from cimrl_jax.report.verdict import verdict

TEMPLATES = pathlib.Path(__file__).parent / "template"
FEW = 8
"""A table of more rows than this is folded where it is not what the page is about."""


def write_page(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Makes `report.html` anew from results.json, and from metrics.jsonl and gallery.json if they are there. Returns its path.

    Raises:
      UserError: results.json is missing or broken, the extra is not installed, or the page cannot be written.
    """
    workdir = pathlib.Path(workdir)
    found = results.read(workdir / "results.json")
    rows = read_metrics(workdir / "metrics.jsonl")
    path = workdir / "report.html"
    write_whole(path, render(found, rows, gallery.read(workdir / "gallery.json")))
    return path


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none if there is no such file. Lines that a kill broke off are left out, wherever they stand."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; expected the metrics.jsonl of a run") from error
    rows = []
    for line in lines:
        try:
            row = json.loads(line, parse_constant=lambda _: None)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def render(results: Results, metrics_rows: Iterable[Mapping[str, Any]], gallery_entries: Iterable[Mapping[str, Any]]) -> str:
    """The page as text.

    Args:
      results: of the run.
      metrics_rows: the rows of metrics.jsonl.
      gallery_entries: as `gallery.read` gives them.

    Raises:
      UserError: jinja2 or matplotlib is not installed, or a picture of the gallery is broken.
    """
    page = template("page.html")
    pictures = drawn(figures(results, metrics_rows))
    config = results.config
    data = config.get("data") or {}
    names, identified = tables.identification_rows(results)
    rules, selections = choices.selection_rows(results)
    pair_splits, pairs = tables.pair_rows(results)
    cards = [gallery.card(entry) for entry in gallery_entries]
    return page.render(
        title=_title(config),
        data_name=str(data.get("name") or "") if isinstance(data, Mapping) else str(data),
        seed_count=max((len(results.runs_of(method)) for method in results.methods()), default=0),
        sentences=verdict(results),
        warnings=list(results.warnings),
        rows=tables.rows(results),
        note=tables.footnote(results),
        ceiling=CEILING,
        pictures=pictures,
        few=FEW,
        rules=[choices.RULES[rule] for rule in rules],
        selections=selections,
        selection_note=choices.selection_note(results),
        settings=choices.settings_rows(results),
        modes=modes.mode_tables(results),
        modes_note=modes.note(results),
        pair_splits=pair_splits,
        pairs=pairs,
        headline=results.headline_split(),
        identification_names=names,
        identified=identified,
        probed=tables.probe_rows(results),
        routers=routing.routing_tables(results),
        cards=cards,
        mediated=any(card.bars for card in cards),
        costs=tables.cost_rows(results),
        data=results.data,
        data_names=data_names(results.data),
        config_text=_yaml(config),
        environment=[(name.replace("_", " "), value) for name, value in results.environment.items() if value is not None],
        version=results.environment.get("cimrl_jax"),
    )


def data_names(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(what the rows of each split are counted by: "groups", or "classes" where no group is known; the names of these, in order of appearance)."""
    splits = list((data.get("splits") or {}).values())
    kind = "groups" if any(split.get("groups") for split in splits) else "classes"
    return kind, list(dict.fromkeys(name for split in splits for name in split.get(kind) or {}))


def template(name: str) -> Any:
    """A page's jinja2 template, which escapes every text.

    Raises:
      UserError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError("the page needs jinja2; pip install 'cimrl_jax[report]'") from error
    loader = jinja2.FileSystemLoader(TEMPLATES)
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"spread": _spread, "percent": tables.percent, "ratio": tables.ratio, "amount": _amount, "measure": tables.measure}
    return page.get_template(name)


def drawn(pictures: Mapping[str, Picture]) -> dict[str, dict[str, Any]]:
    """For the template. Only the drawings are markup: made here, with the text in them escaped by matplotlib."""
    import markupsafe

    return {name: {**picture._asdict(), "svg": markupsafe.Markup(picture.svg)} for name, picture in pictures.items()}


def _title(config: Mapping[str, Any]) -> str:
    report = config.get("report")
    title = report.get("title") if isinstance(report, Mapping) else None
    return str(title or config.get("name") or "A run of cimrl_jax")


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(results.plain(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _spread(cell: results.Cell | None) -> dict[str, str]:
    """The parts of a cell that the page sets in different sizes."""
    if cell is None:
        return {"mean": tables.ABSENT, "std": "", "bounds": ""}
    bounds = f"{tables.percent(cell.low)} – {tables.percent(cell.high)}" if cell.low is not None and cell.high is not None else ""
    return {"mean": tables.percent(cell.mean), "std": "" if cell.std is None else f"± {tables.percent(cell.std)}", "bounds": bounds}


def _amount(value: float | None) -> str:
    """Three digits at least, thousands apart."""
    if value is None:
        return tables.ABSENT
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"
