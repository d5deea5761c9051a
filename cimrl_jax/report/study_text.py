"""A study as Markdown."""

from __future__ import annotations

from cimrl_jax.report.comparison import DUELS, OURS, Comparison, Entry, about, duels, footnote, settings
from cimrl_jax.report.tables import ABSENT, as_markdown, escaped, percent, ratio, spread


def markdown(found: Comparison) -> str:
    """The whole study, readable as plain text; in bold, of each column, the best method that saw no group label."""
    parts = [f"# {escaped(found.name)}\n"]
    for title, heads, _ in found.sections():
        entries = {head: found.columns[name].entries() for head, name in heads.items()}
        names = [escaped(head) for head in heads]
        worsts, others = [], []
        for method in found.methods(heads.values()):
            own = [entries[head].get(method) for head in heads]
            worsts.append([escaped(method), *(_headline(entry) for entry in own)])
            told = about(entry for entry in own if entry)
            accuracies = [spread(entry.accuracy) if entry else ABSENT for entry in own]
            others.append([escaped(method), escaped(told.labels), escaped(told.selected_by), ratio(told.cost), *accuracies])
        splits = ", ".join(dict.fromkeys(column.split for name in heads.values() if (column := found.columns[name]).results))
        parts.append(f"## {escaped(title)}\n")
        if not worsts:
            parts.append("Nothing was measured.\n")
            continue
        parts.append(
            as_markdown(["method", *names], worsts, f"Worst group of {splits}, and of the gap between ERM and the ceiling the share closed.")
        )
        parts.append(as_markdown(["method", "labels used", "selected by", "cost", *names], others, "Accuracy on test.", left=(0, 1, 2)))
    if lines := duels(found):
        texts = [[escaped(d.method), f"{d.above} of {d.of}", str(d.clear), percent(d.difference)] for d in lines]
        head = [f"{OURS} against", "above on", "of these clearly", "mean difference"]
        parts.append(f"## {OURS} against each method\n")
        parts.append(as_markdown(head, texts, DUELS))
    if tried := settings(found):
        head = ["data", "method", "setting", "validation score", "worst group", "chosen"]
        texts = [[*map(escaped, line[:3]), line[3], spread(line[4]), "chosen" if line[5] else ""] for line in tried]
        parts += ["## Settings tried\n", as_markdown(head, texts, "Chosen by the validation score alone.", left=(0, 1, 2))]
    if notes := found.notes():
        parts += ["## Not measured\n", "".join(f"- {escaped(name)}: {escaped(note)}\n" for name, note in notes)]
    return "\n".join([*parts, footnote(found), ""])


def _headline(entry: Entry | None) -> str:
    if entry is None or entry.worst is None:
        return ABSENT
    text = spread(entry.worst)
    text = f"**{text}**" if entry.best else text
    return text if entry.gap is None else f"{text}; gap {spread(entry.gap, 0)}"
