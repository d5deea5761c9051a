"""A finding in a chest X-ray, with why it was taken (MIMIC-CXR-JPG, Johnson et al. 2019). The view tells: the severely ill are taken in bed (AP).

`data.path` is a folder with the files of MIMIC-CXR-JPG 2.0.0 and of MIMIC-CXR's reports (physionet.org; the tables also as .csv.gz):
  mimic-cxr-2.0.0-metadata.csv, mimic-cxr-2.0.0-split.csv, mimic-cxr-2.0.0-chexpert.csv (or -negbio.csv, by `labels`),
  files/p10/p10000032/s50414267/{dicom_id}.jpg   the pictures,
  files/p10/p10000032/s50414267.txt              the reports; all or none of them may be absent, if `sections` is empty,
  patients.csv                                   of MIMIC-IV; only with attribute=sex.

The text are those sections of the report that were written before anyone looked at the picture; findings and impression tell the label. Used are
pictures from the front, AP or PA, whose label and attribute are known; `notes` counts the others. Groups are label x attribute, splits the official
ones. Besides, train_randomised has every training row, some many times, and test_balanced leaves test rows out, so that the attribute says nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from cimrl_jax.data import balancing, listing, metadata, planting
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

WHERE = "data set 'mimic_cxr'"
NOTES = "MIMIC-CXR-JPG 2.0.0 (Johnson et al. 2019), credentialed access under PhysioNet's licence: not to be passed on"
MEND = "fetch it from physionet.org (MIMIC-CXR-JPG 2.0.0) into data.path"
PUBLISHED = {"dicom_id": 377110, "study_id": 227835, "subject_id": 65379}
"""Pictures, studies and patients."""
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion", "Lung Opacity", "No Finding",
    "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
ATTRIBUTES = {"view": ("PA", "AP"), "portable": ("fixed", "portable"), "sex": ("woman", "man")}
VIEWS = ("PA", "AP")
Section = Literal["indication", "history", "clinical information", "reason for exam", "technique", "comparison", "findings", "impression"]
KINDS: dict[Section, str] = {
    # In this order: a heading that names findings beside anything else is of the findings.
    "findings": r"finding|wet read",
    "impression": r"impression|conclusion|interpretation|diagnos|opinion|summary",
    "comparison": r"comparison",
    "reason for exam": r"^reason",
    "indication": r"indication",
    "history": r"history",
    "clinical information": r"^clinical",
    "technique": r"technique|exam|procedure|study|views?$",
}
BEFOREHAND: tuple[Section, ...] = ("indication", "history", "clinical information", "reason for exam")
"""Sections that are written before anyone looks at the picture."""
EXAM = r"for (?:the |this )?(?:exam(?:ination)?|study)"
ONE = (
    rf"(?:(?:(?:clinical|patient|medical|brief|past) )*(?:history|indications?)|indications? {EXAM}|reason {EXAM}|"
    r"clinical (?:information|info|data|details|question)|technique|comparisons?|examination|findings?|impressions?|conclusions?|wet read|"
    r"recommendations?|notification)"
)
KNOWN = rf"{ONE}(?: ?(?:and|/|&) ?{ONE})?"
CAPITALS = r"[A-Z][A-Z/&,()'-]*(?: +[A-Z/&,()'-]+){0,7}"
# A known heading in any letters or some words in capitals, with a colon; or a line of capitals alone.
HEADING = re.compile(rf"(?:^|(?<=[\s.;]))(?P<name>(?i:{KNOWN})|{CAPITALS}) *:|^ *(?P<line>(?=[A-Z]{{4}}){CAPITALS}) *$", re.MULTILINE)
# Where what was seen may begin without a heading: after an empty line, or at a line that begins by naming the pictures.
UNTOLD = re.compile(
    r"\n *\n|\n *(?:(?:single|portable|two|2)\b[ -]*)*(?:ap|pa|frontal|upright|semi-?upright|supine)\b[^.:]*\b(?:views?|radiographs?|chest)\b", re.I
)
TAIL = re.compile(rf"(?:^|(?<=[\s/])){KNOWN}$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    finding: str = "Pneumonia"
    """What is to be told: a column of the labels, such as Edema or Pneumothorax."""
    labels: Literal["chexpert", "negbio"] = "chexpert"
    """Which program read the labels off the reports."""
    uncertain: Literal["ignore", "negative", "positive"] = "ignore"
    """What becomes of a finding that the report calls possible (-1): such pictures are left out, or it counts as absent or present."""
    unmentioned: Literal["negative", "ignore"] = "negative"
    """What becomes of a finding that the report does not mention (blank): it counts as absent, or such pictures are left out."""
    attribute: Literal["view", "portable", "sex"] = "view"
    """What is not to tell: the view (AP or PA), whether the machine came to the bed, or the sex."""
    sections: tuple[Section, ...] = BEFOREHAND
    """Which sections of the report are the text; empty: there is no text. technique names the view; findings and impression tell the label."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, 1] uint8 and, unless `sections` is empty, text [length] int32, absent where a report has none of the sections.
    `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, or rows that cannot be used with on_bad_row=fail.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(
            f"{WHERE}: it reads files; set data.path to a folder with mimic-cxr-2.0.0-metadata.csv, files/ and more (see --help mimic_cxr)"
        )
    return listing.assemble(read(options, path), options, expected=expected)


class Row(NamedTuple):
    line: int
    """Of the table of pictures."""
    dicom: str
    study: str
    patient: str
    split: str
    label: int
    attribute: int
    fault: tuple[str, str] | None
    """Kind and detail of a `listing.Fault`."""

    @property
    def folder(self) -> str:
        """Of the patient."""
        return f"files/p{self.patient[:2]}/p{self.patient}"


def read(options: Options, path: pathlib.Path) -> listing.Listing:
    """The pictures from the front whose label and attribute are known, with the sections of their reports; no picture is read.

    Raises:
      UserError: a file that is missing or damaged, or has more rows than were published; an unknown finding; no row that can be used.
    """
    if options.finding not in FINDINGS:
        raise UserError(f"{WHERE}: data.finding is {options.finding!r}; {nearest(options.finding, FINDINGS)}")
    left_out: collections.Counter[str] = collections.Counter()
    rows = list(_rows(options, path, left_out))
    if not rows:
        raise UserError(f"{WHERE}: no row of {_file(path, 'mimic-cxr-2.0.0-metadata')} can be used ({dict(left_out)}); {MEND}")
    faults = [listing.Fault(number, *row.fault) for number, row in enumerate(rows) if row.fault is not None]
    files = [listing.inside(path, f"{row.folder}/s{row.study}/{row.dicom}.jpg") for row in rows]
    faults += [
        listing.Fault(row, "file outside", f"{rows[row].dicom!r:.80} is no name of a picture") for row, file in enumerate(files) if file is None
    ]
    columns: dict[str, listing.Column] = {"image": listing.Pictures(files, channels=1, flip=False)}
    if options.sections:
        reports = [None if row.fault is not None else listing.inside(path, f"{row.folder}/s{row.study}.txt") for row in rows]
        # A study has one report and mostly several pictures.
        distinct = list(dict.fromkeys(report for report in reports if report is not None))
        contents, damaged = metadata.contents(distinct, errors="replace")
        if len(damaged) == len(distinct):
            raise UserError(
                f"{WHERE}: there are no reports such as {distinct[0] if distinct else path / 'files'}; unpack mimic-cxr-reports.zip of MIMIC-CXR in "
                "data.path, or set data.sections to nothing"
            )
        texts: dict[Any, str | None] = {report: text_of(content or "", options) for report, content in zip(distinct, contents, strict=True)}
        reasons = {distinct[place]: reason for place, reason in damaged.items()}
        faults += [listing.Fault(row, *reasons[report]) for row, report in enumerate(reports) if report in reasons]
        columns["text"] = listing.Texts([texts.get(report) for report in reports])
    label, attribute, names = np.array([row.label for row in rows]), np.array([row.attribute for row in rows]), ATTRIBUTES[options.attribute]
    classes = (f"no {options.finding}", options.finding)
    whole = listing.Listing(
        name="mimic_cxr",
        columns=columns,
        label=label.astype(np.int32),
        class_names=classes,
        splits={name: np.flatnonzero([row.split == official and row.fault is None for row in rows]) for official, name in SPLITS.items()},
        origins=listing.Lines("mimic-cxr-2.0.0-metadata.csv", [row.line for row in rows]),
        notes="; ".join([NOTES, *(f"{count} pictures left out: {reason}" for reason, count in left_out.items())]),
        ids=[row.dicom for row in rows],
        group=(len(names) * label + attribute).astype(np.int32),
        group_names=planting.group_names(classes, names),
        attribute_names=names,
        faults=tuple(faults),
    )
    return balancing.add(whole, options)


def _rows(options: Options, path: pathlib.Path, left_out: collections.Counter[str]) -> Iterator[Row]:
    """The pictures that are used; `left_out` counts the others, by reason."""
    keys = ("dicom_id", "subject_id", "study_id", "ViewPosition", "PerformedProcedureStepDescription")
    pictures = _table(path, "mimic-cxr-2.0.0-metadata", keys)
    splits = _table(path, "mimic-cxr-2.0.0-split", ("dicom_id", "split")).columns
    split = dict(zip(splits["dicom_id"], splits["split"], strict=True))
    found = _table(path, f"mimic-cxr-2.0.0-{options.labels}", ("study_id", options.finding)).columns
    told = dict(zip(found["study_id"], found[options.finding], strict=True))
    people = _table(path, "patients", ("subject_id", "gender")).columns if options.attribute == "sex" else None
    sex = dict(zip(people["subject_id"], people["gender"], strict=True)) if people else {}
    for name, published in PUBLISHED.items():
        if len(set(pictures.columns[name])) > published:
            what = f"{_file(path, 'mimic-cxr-2.0.0-metadata')} has {len(set(pictures.columns[name]))} different {name}"
            raise UserError(f"{WHERE}: {what}, but only {published} were published; {MEND}")
    for line, dicom, patient, study, view, procedure in zip(pictures.lines, *pictures.columns.values(), strict=True):
        fault = _fault(dicom, patient, study, split, told, options)
        label = _label(told.get(study, ""), options)
        if view.upper() not in VIEWS:
            left_out["not from the front, or not known from where"] += 1
        elif study not in told:
            left_out[f"no {options.labels} labels of the study"] += 1
        elif label is None and fault is None:
            left_out[f"{options.finding} is uncertain or not mentioned"] += 1
        elif (attribute := _attribute(view, procedure, sex.get(patient, ""), options)) is None:
            left_out[f"{options.attribute} not known"] += 1
        else:
            yield Row(line, dicom, study, patient, split.get(dicom, ""), label or 0, attribute, fault)


def _fault(dicom: str, patient: str, study: str, split: Mapping[str, str], told: Mapping[str, str], options: Options) -> tuple[str, str] | None:
    if not re.fullmatch(r"\d{8}", patient) or not re.fullmatch(r"\d+", study):
        return "bad number", f"subject_id is {patient!r:.40} and study_id {study!r:.40}, expected 8 digits and digits"
    if split.get(dicom) not in SPLITS:
        return "no split", f"mimic-cxr-2.0.0-split.csv says {split.get(dicom)!r:.40} of {dicom}, expected train, validate or test"
    if told.get(study, "") and _number(told[study]) not in (-1, 0, 1):
        return "unknown label", f"{options.finding} of study {study} is {told[study]!r:.40}, expected 1, 0, -1 or nothing"
    return None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _label(cell: str, options: Options) -> int | None:
    """1 or 0; None: left out."""
    policy = {"": options.unmentioned, "-1": options.uncertain}.get(cell.removesuffix(".0"), "")
    if policy:
        return {"negative": 0, "positive": 1, "ignore": None}[policy]
    number = _number(cell)
    return int(number) if number in (0, 1) else None


def _attribute(view: str, procedure: str, sex: str, options: Options) -> int | None:
    """Which of the attribute's values; None: not known."""
    match options.attribute:
        case "view":
            return VIEWS.index(view.upper())
        case "portable":
            return int("PORTABLE" in procedure.upper()) if procedure else None
        case "sex":
            return {"F": 0, "M": 1}.get(sex.upper())


def _file(path: pathlib.Path, name: str) -> pathlib.Path:
    plain = path / f"{name}.csv"
    packed = plain.with_name(f"{name}.csv.gz")
    return packed if packed.is_file() and not plain.is_file() else plain


def _table(path: pathlib.Path, name: str, columns: tuple[str, ...]) -> metadata.Table:
    mend = MEND if name != "patients" else "it is the table hosp/patients of MIMIC-IV (physionet.org)"
    return metadata.table(_file(path, name), columns, where=WHERE, mend=mend)


def text_of(report: str, options: Options) -> str | None:
    """The wanted sections of a report, without headings and the marks (___) of what was taken out; None: it has none of them."""
    wanted = (text for kind, text in sections(report) if kind in options.sections)
    return " ".join(" ".join(text for text in wanted if text).split()) or None


def sections(report: str) -> list[tuple[Section | None, str]]:
    """(kind, text) of each section of a report that has a heading, in its order; None: another kind.

    A section ends at the next heading, and one that is not of findings or impression at the first blank line too: what follows without a heading is
    mostly findings.
    """
    text = report.replace("\r", "").replace("\t", " ")
    marks: list[tuple[int, int, Section | None]] = []
    for match in HEADING.finditer(text):
        group = "name" if match["name"] else "line"
        name = match[group].rstrip()
        # In a text that is all capitals, what stands before the heading is the end of the section above.
        tail = TAIL.search(name)
        start, kind = match.start(group) + (tail.start() if tail else 0), _kind(tail[0] if tail else name, known=tail is not None)
        if kind in BEFOREHAND and marks and marks[-1][2] in ("findings", "impression") and text[:start].rpartition("\n")[2].strip():
            continue  # within a sentence of what was seen
        marks.append((start, match.end(), kind))
    found: list[tuple[Section | None, str]] = []
    ends = [start for start, _, _ in marks[1:]] + [len(text)]
    for (_, start, kind), end in zip(marks, ends, strict=False):
        body = text[start:end]
        if kind not in ("findings", "impression"):
            body = UNTOLD.split(body, maxsplit=1)[0]
        found.append((kind, " ".join(re.sub(r"_{2,}-?", " ", body).split())))
    return found


def _kind(name: str, *, known: bool) -> Section | None:
    """The kind of a heading. One that is not known is of none of the sections that may be shown."""
    name = " ".join(name.lower().split())
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name) and (known or kind not in BEFOREHAND)), None)
