"""Which model of a run is reported: every rule keeps its own best checkpoint, one rule picks it, and the setting of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from cimrl_jax import metrics
from cimrl_jax.assembly import Assembly
from cimrl_jax.config import Config
from cimrl_jax.data.source import group_counts
from cimrl_jax.evaluate import robustness
from cimrl_jax.evaluate.predict import Members, Predict, make_predict
from cimrl_jax.train import loop
from cimrl_jax.train.mesh import gathered
from cimrl_jax.types import Method, Told, TrainState

ORACLE = "oracle"
"""Selection by the test groups themselves: what could be had, never used to choose."""

HOME = "test"
"""The split whose rows others have versions of."""

BLIND = ("worst_class", "average")
"""Rules that are blind to the shortcut: where validation has it too, they prefer early models, which follow it."""


class Finished(NamedTuple):
    """A trained program, and the members of it that are looked at."""

    program: loop.Program
    trained: loop.Trained
    members: tuple[int, ...]

    def picked(self, rule: str) -> Members:
        """Their models, as the rule selected them."""
        chosen, rows = self.trained.selected[rule], np.asarray(self.members)
        own = Members(chosen.params, chosen.method, self.trained.hyper)
        return own if len(rows) == self.program.members else jax.tree.map(lambda x: x[rows], own)


def needs(method: Method) -> str:
    """Which labels beside the class the method reads."""
    words = {"attribute names": method.needs_attribute_names, "groups": method.needs_groups, "validation groups": method.needs_validation_groups}
    return " + ".join(word for word, needed in words.items() if needed) or "none"


class Look:
    """How the models of one assembly are looked at: their predictions, scores and reports."""

    def __init__(self, config: Config, built: Assembly):
        self.config, self.built = config, built
        splits = built.dataset.splits
        self.headlines = tuple(name for name in ("test", "test_balanced") if name in splits)
        """The splits that every rule and setting is measured on; the last is the one that the oracle reads."""
        self._predict: dict[Any, Predict] = {}
        self._placed: dict[int, Any] = {}
        self._shares = metrics.group_shares(group_counts(splits["train"], len(built.dataset.group_names)))
        told = {"worst_group": (built.dataset.split("validation").group >= 0).any(), ORACLE: (splits[self.headlines[-1]].group >= 0).any()}
        self.rules = ("worst_class", "average", *(rule for rule, known in told.items() if known), "last")
        """Those that the data set allows."""

    def rule(self, method: Method) -> str:
        """The rule that selects this method's models."""
        asked = self.config.evaluate.selection
        if asked != "own":
            return asked
        if method.needs_groups or method.needs_validation_groups:
            return "worst_group"
        return method.selection if method.selection in self.rules else "worst_class"

    def plan(self, own: loop.Program) -> loop.Plan:
        """When and how the training of a program is looked at."""
        train, rules = self.config.train, self.rules
        if self.rule(own.method) not in rules:  # said before the training, not after
            robustness.select(self.rule(own.method), {})

        def score(states: TrainState, step: int) -> tuple[dict[str, np.ndarray], list[dict[str, float | None]]]:
            members = Members(*gathered((states.params, states.method, states.hyper)))
            reports = self._reports(own, members, "validation")
            scores = {rule: np.array([robustness.select(rule, report, step=step) for report in reports]) for rule in rules if rule != ORACLE}
            if ORACLE in rules:
                far = self._reports(own, members, self.headlines[-1])
                scores[ORACLE] = np.array([robustness.select("worst_group", report) for report in far])
            if step < train.select_from * train.steps:
                scores |= {rule: np.full(own.members, -np.inf) for rule in BLIND}
            return scores, [{k: report[k] for k in ("accuracy", "worst_class_accuracy", "worst_group_accuracy")} for report in reports]

        def read(states: TrainState, split: str) -> Told:
            source = self.built.dataset.split(split) if split != "train" else own.source
            members = Members(*gathered((states.params, states.method, states.hyper)))
            said = self._of(own.method, features=split != "train")(members, source)
            known = own.method.needs_groups if split == "train" else own.method.needs_validation_groups
            group = source.group if known else np.full_like(source.group, -1)
            return Told(said.logits, said.features, source.label, group, said.inferred)  # type: ignore[arg-type]

        return loop.Plan(train.eval_every, train.checkpoint_every, rules, score, read)

    def measure(self, finished: Finished, rule: str, split: str) -> list[metrics.Report]:
        """The report of each member's model on a split."""
        return self._reports(finished.program, finished.picked(rule), split)

    def measure_all(self, finished: Finished, rule: str) -> dict[str, list[dict[str, metrics.Report]]]:
        """Each member's reports {split: report} on every split that is not for training, of the prediction (under "") and of each of the method's
        modes (under its name), in one pass over each split. Where rows are versions of rows of test, "both_right" is the pair consistency."""
        dataset, method, members = self.built.dataset, finished.program.method, finished.picked(rule)
        names = ["", *method.modes]
        found: dict[str, list[dict[str, metrics.Report]]] = {name: [{} for _ in finished.members] for name in names}
        right: dict[str, dict[str, list[Bool[np.ndarray, " n"]]]] = {}
        for split, source in dataset.splits.items():
            if split.startswith("train"):
                continue
            said = self._of(method, modes=True)(members, source)
            for name, logits in {"": said.logits, **said.modes}.items():
                for own, part in zip(found[name], logits, strict=True):
                    own[split] = self._report(part, split)
                if split in dataset.keys:
                    right.setdefault(split, {})[name] = [robustness.right(part, source.label) for part in logits]
        for split in right.keys() - {HOME} if HOME in right else ():
            pairs = robustness.matched(np.asarray(dataset.keys[HOME]), np.asarray(dataset.keys[split]))
            for name in names:
                for own, home, away in zip(found[name], right[HOME][name], right[split][name], strict=True):
                    own[split]["both_right"] = robustness.both_right(home, away, pairs)
        return found

    def _reports(self, own: loop.Program, members: Members, split: str) -> list[metrics.Report]:
        said = self._of(own.method)(members, self.built.dataset.split(split))
        return [self._report(logits, split) for logits in said.logits]

    def _report(self, logits: Float[np.ndarray, "n c"], split: str) -> metrics.Report:
        dataset = self.built.dataset
        return robustness.evaluate_split(logits, dataset.split(split), self._shares, dataset.group_names, dataset.answers.get(split))

    def _of(self, method: Method, *, features: bool = False, modes: bool = False) -> Predict:
        """The model's prediction is compiled once for all methods that have none of their own."""
        key = (method.predict, method.infer, features, *(method.modes.values() if modes else ()))
        if key not in self._predict:
            self._predict[key] = make_predict(
                self.built.model,
                method,
                batch_size=self.config.evaluate.batch_size,
                resident=self.config.data.resident != "no",
                features=features,
                modes=modes,
                placed=self._placed,
            )
        return self._predict[key]


def choose(trained: Sequence[Finished], look: Look) -> tuple[Finished, list[dict[str, Any]]]:
    """(the members of the setting whose mean validation score is highest, what results.json says of every setting).

    The score is that of the method's own rule at the step which that rule selected, averaged over seeds. On equal scores the earlier setting.
    """
    rule = look.rule(trained[0].program.method)
    found: list[tuple[float, Finished]] = []
    for whole in trained:
        settings = whole.program.settings
        for setting in [own for i, own in enumerate(settings) if own not in settings[:i]]:
            members = tuple(i for i, own in enumerate(settings) if own == setting)
            score = float(np.mean(whole.trained.selected[rule].score[list(members)]))
            found.append((score, whole._replace(members=members)))
    best = max(range(len(found)), key=lambda i: found[i][0])
    if len(found) == 1:
        return found[0][1], []
    entries = []
    for i, (score, own) in enumerate(found):
        splits = {name: _over_seeds(look.measure(own, rule, name)) for name in look.headlines}
        program = own.program
        entry = {"method": program.label, "setting": dict(program.settings[own.members[0]]), "score": score, "rule": rule, "n": len(own.members)}
        entries.append(entry | {"chosen": i == best, "splits": splits})
    return found[best][1], entries


def _over_seeds(reports: Sequence[metrics.Report]) -> dict[str, dict[str, float | None]]:
    cells = {}
    for name in ("accuracy", "worst_group_accuracy"):
        values = [report[name] for report in reports if report[name] is not None]
        cells[name] = {"mean": float(np.mean(values)) if values else None, "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}
    return cells
