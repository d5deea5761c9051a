"""What the numbers say, in plain words."""

from __future__ import annotations

from cimrl_jax.report.results import BASELINE, CEILING, Cell, Results

LEAST_FALL = 0.05
"""A baseline whose accuracy falls by less than this has not followed the shortcut."""
MOST_TOLD, BEST_TOLD = 5, 3
"""Of more methods than the first, only so many are told of as the second says; the table has them all."""
PERCENT = "\N{NO-BREAK SPACE}%"
RULES = {
    "worst_class": "worst-class accuracy on the validation split, which needs no group label",
    "worst_group": "worst-group accuracy on the validation split, which reads its group labels",
    "average": "average accuracy on the validation split",
}


def verdict(results: Results) -> list[str]:
    """Sentences: whether ERM fell for the shortcut, how much of the gap each method closed, and which rule selected the models."""
    sentences = [_fall(results)]
    methods = [method for method in results.methods() if method not in (BASELINE, CEILING)]
    split = results.headline_split()
    ceiling = results.cell(CEILING, split, "worst_group_accuracy")
    base = results.cell(BASELINE, split, "worst_group_accuracy")
    if ceiling and base:
        sentences.append(
            f"Where the shortcut is randomised in training, ERM's worst group reaches {_percent(ceiling)} instead of {_percent(base)}: the ceiling."
        )
    gap_name = "that gap" if ceiling and base else "the gap between ERM and the ceiling"
    if len(methods) > MOST_TOLD:
        worsts = {method: results.cell(method, split, "worst_group_accuracy") for method in methods}
        sentences.append(f"Of {len(methods)} methods, the {BEST_TOLD} with the highest worst group, which the tests themselves picked out:")
        methods = sorted(methods, key=lambda method: -cell.mean if (cell := worsts[method]) else 1.0)[:BEST_TOLD]
    level = f"{100 * results.level():g}{PERCENT} interval"
    for method in methods:
        gap, worst = results.gap(method), results.cell(method, split, "worst_group_accuracy")
        if gap is not None:
            sign = -1 if gap.mean < 0 else 1
            ends = sorted(100 * sign * end for end in (gap.low, gap.high) if end is not None)
            bounds = f" ({level} {ends[0]:z.0f} to {ends[1]:z.0f}{PERCENT})" if len(ends) == 2 else ""
            told = f", worst group {_percent(worst)}" if worst else ""
            unsure = "; the interval holds 0, so this may be chance" if len(ends) == 2 and ends[0] <= 0 else ""
            if gap.mean < 0:
                sentences.append(f"{method} does worse than ERM, by {-100 * gap.mean:.0f}{PERCENT} of {gap_name}{bounds}{told}{unsure}.")
            else:
                sentences.append(f"{method} closes {100 * gap.mean:.0f}{PERCENT} of {gap_name}{bounds}{told}{unsure}.")
        elif worst is not None:
            against = f" against ERM's {_percent(base)}" if base else ""
            unshared = "; no share of a gap can be given" if ceiling else ""  # without a ceiling the warnings say so
            sentences.append(f"{method} reaches {_percent(worst)} on its worst group{against}{unshared}.")
        else:
            sentences.append(f"{method} has no worst-group accuracy on {split}.")
    rules = list(dict.fromkeys(str(run["selected_by"]) for run in results.runs if run.get("selected_by")))
    if rules:
        sentences.append(f"Models were selected by {'; '.join(RULES.get(rule, rule) for rule in rules)}.")
    return sentences


def _fall(results: Results) -> str:
    home, away = results.cell(BASELINE, "test", "accuracy"), results.cell(BASELINE, "test_flipped", "accuracy")
    if BASELINE not in results.methods():
        return "ERM was not trained, so nothing shows whether the shortcut misleads a plain model."
    if home is None or away is None:
        return "ERM was not measured on a flipped split, so nothing shows whether the shortcut misleads a plain model."
    told = f"from {_percent(home)} on the test split to {_percent(away)} where the shortcut points the other way"
    if home.mean - away.mean >= LEAST_FALL:
        return f"ERM fell for the shortcut: its accuracy drops {told}."
    return f"ERM did not fall for the shortcut: its accuracy goes {told}."


def _percent(cell: Cell) -> str:
    return f"{100 * cell.mean:.1f}{PERCENT}"
