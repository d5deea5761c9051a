"""The records that every floor shares. Records only: no logic beyond reading a field.

The central idea is the *slot*. Whatever a modality is (pixels, words, a spectrogram, the columns of a table), the model's `embed` turns it into
`Slots`: floats `[b, n, d]` with a validity mask `[b, n]`. Everything causal is written once, for slots, for any number of modalities.

Letters in shapes: b examples, n slots, d width of a slot, c classes, g groups, m modality (a name), e width of an element.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Kind = Literal["image", "text", "spectrogram", "table", "slots"]
Params = Any  # a tree of float arrays
Hyper = Mapping[str, Float[Array, ""]]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Feature:
    """What one modality looks like before the model sees it, as its data set declares it.

    `shape` is that of one raw example, `dtype` its type as it crosses to the device:
    image `[h, w, c]` uint8; text `[length]` int32 ids, 0 is padding; spectrogram `[time, mel]` float32; table `[columns]` float32;
    slots `[n, d]` float32 (already slots: the synthetic data).
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    vocabulary: tuple[str, ...] = ()
    """Text: the word of each id. Id 0 is padding, id 1 the unknown word. A piece that continues a word is written ##so."""
    columns: tuple[str, ...] = ()
    """Table: the name of each column."""
    flip: bool = True
    """Image: whether a mirrored picture means the same (not so for digits and X-rays)."""
    mean: tuple[float, ...] = (0.5,)
    """Image, per channel in 0..1; table, per column: subtracted before the model."""
    std: tuple[float, ...] = (0.5,)
    """Divides after the mean was subtracted."""
    tokeniser: str = ""
    """Text: the folder of the checkpoint whose tokeniser made the ids; empty: they are whole words."""
    special: tuple[int, ...] = ()
    """Text with a tokeniser: the ids that padding, the unknown word, a text's beginning and its end have in the checkpoint."""
    raw: Feature | None = None
    """Slots that a frozen encoder made (its tokens): what it made them of."""
    views: int = 1
    """Such slots, and texts: how many versions of an example lie one after the other in `shape`'s first axis. The first is the one that is read."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a pretrained encoder was trained to read. A data set that reads files prepares its raw inputs so."""

    size: tuple[int, int] = (0, 0)
    """Image: height and width."""
    channels: int = 0
    """Image: 3 is colour."""
    mean: tuple[float, ...] = ()
    """Image: the `Feature.mean` it was trained with."""
    std: tuple[float, ...] = ()
    """Image: the `Feature.std` it was trained with."""
    tokeniser: str = ""
    """Text: the folder that has the tokeniser's files."""
    length: int = 0
    """Text: most ids it can read, those that it adds itself left out."""


@dataclasses.dataclass(frozen=True)
class SlotSpec:
    """The layout of one modality's slots: `count` slots of width `width`, each made of `width // element` elements of `element` numbers.

    An element is the finest part that can carry a cue: a pixel's channels in an image's patch. `low` and `high` bound valid values (None: unbounded).
    """

    kind: Kind
    count: int
    width: int
    element: int
    low: float | None = None
    high: float | None = None
    grid: tuple[int, int] | None = None
    """Rows and columns, where the slots lie on a plane."""
    lead: int = 0
    """Slots before the first that stands for a place (a frozen encoder's class token)."""
    raw: Kind | None = None
    """Slots that a frozen encoder made: the kind of what it made them of."""


class Prompts(NamedTuple):
    """The names of the classes and of the spurious attribute's values, as the model's text modality reads them.

    Both are raw inputs of every modality `{m: [k, *raw shape]}`; those of the others are zero, and not present.
    """

    modality: str
    classes: Mapping[str, np.ndarray]
    attributes: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a method may know before training: sizes, and the training split's class and (only if it declares `needs_groups`) group counts."""

    num_classes: int
    num_groups: int
    num_examples: int
    steps: int
    slots: Mapping[str, SlotSpec]
    dim: int
    """Width of every code."""
    class_counts: tuple[int, ...]
    group_counts: tuple[int, ...] = ()
    group_attribute: tuple[int, ...] = ()
    """Attribute of each group id; like the counts only for methods that declare `needs_groups`."""
    prompts: Prompts | None = None
    """Only for methods that declare `needs_attribute_names`."""
    init_model: Callable[[Key[Array, ""]], Params] | None = None
    """A fresh set of the model's parameters, for methods that train a second network."""


@flax.struct.dataclass
class Slots:
    values: Float[Array, "*b n d"]
    mask: Bool[Array, "*b n"]


@flax.struct.dataclass
class Batch:
    inputs: dict[str, Array]
    """Raw, per modality: see `Feature`."""
    present: dict[str, Bool[Array, "*b"]]
    """False where an example lacks that modality."""
    label: Int[Array, "*b"]
    group: Int[Array, "*b"]
    """label x attribute; -1 where unknown."""
    index: Int[Array, "*b"]
    """Row in the data set's split."""
    weight: Float[Array, "*b"]
    """0 on padding; it scales the example in every mean."""


@flax.struct.dataclass
class Outputs:
    logits: Float[Array, "*b c"]
    """The prediction (float32)."""
    heads: dict[str, Float[Array, "*b c"]]
    """One per modality under its name, plus "shared" and "combined"."""
    codes: dict[str, Float[Array, "*b d"]]
    """One per modality under its name, plus "shared" (the fused code) and "projection" (for contrast)."""
    extras: dict[str, Array]


class Head(NamedTuple):
    """The prediction as a linear map of the codes, for methods that fit it apart: `logits = features(codes) @ kernel + bias`."""

    features: Callable[[Mapping[str, Array]], Array]
    """codes -> [b, k]: the codes of all modalities and the shared one, side by side."""
    get: Callable[[Params], tuple[Array, Array]]
    """params -> (kernel [k, c], bias [c])."""
    put: Callable[[Params, Any, Any], Params]
    """(params, kernel, bias) -> params."""


class Model(NamedTuple):
    """Pure functions of parameters. `key=None` means evaluation (no dropout)."""

    init: Callable[[Key[Array, ""]], Params]
    embed: Callable[[Params, Mapping[str, Array], Mapping[str, Array]], dict[str, Slots]]
    """(params, inputs, present) -> slots. An absent modality's mask is False throughout."""
    encode: Callable[..., dict[str, Array]]
    """(params, slots, key=None) -> codes {modality and "shared": [b, d]}. An absent modality's code is zero."""
    decide: Callable[..., Outputs]
    """(params, codes) -> Outputs."""
    perturb: Callable[[Mapping[str, Array], Key[Array, ""]], dict[str, Array]]
    """(inputs, key) -> another view of the same examples, on the device, same shapes and types."""
    regions: Callable[[Mapping[str, Array]], dict[str, Array]]
    """Raw masks {m: [b, *raw shape]} -> the share of each slot that they cover {m: [b, n]} in 0..1."""
    render: Callable[[Params, Mapping[str, Array]], dict[str, Array]]
    """(params, slot values {m: [b, n, d]}) -> what they look like, raw: pictures uint8, the nearest word ids, numbers."""
    slots: Mapping[str, SlotSpec]
    head: Head
    held: Params = ()
    """What checkpoints gave: values that stay (in no one's parameters), and those that moving ones start from."""
    bind: Callable[[Params], Model] | None = None
    """held -> this model with `held` in place of its own, so that a jitted function takes it as an argument and not as a constant of the program."""
    rates: Params | None = None
    """The share of the learning rate that each parameter gets; None: all the whole."""
    prepare: Callable[..., dict[str, Array]] | None = None
    """(raw inputs, present, key=None) -> inputs, with frozen encoders' features in the place of what they read; with a key, of a perturbed view.
    None: `embed` takes raw inputs."""
    fed: tuple[str, ...] = ()
    """The modalities that `prepare` changes."""
    notes: tuple[str, ...] = ()
    """What was read from which checkpoint, and what of it was not: a line each."""
    weights: Mapping[str, str] = {}
    """By modality a hash of what was read from its checkpoint."""
    export: Callable[..., list[Any]] | None = None
    """(one member's params, folder) -> the folders written: one for each encoder of a published architecture. None: it has none that could move."""


class Population(NamedTuple):
    """What a stage's `draw` may look at, on the host, for one member."""

    seed: int
    label: Int[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    """-1 everywhere unless the method declares `needs_groups`."""
    state: Any
    """The method's state at the beginning of the stage, as NumPy arrays."""
    hyper: Mapping[str, float]


class Rows(NamedTuple):
    """Which rows of the training split a stage trains on."""

    rows: Int[np.ndarray, " k"]
    """An epoch: every entry comes once, in a new order each time. A row may be there often, or not at all."""
    weights: Float[np.ndarray, " k"] | None = None
    """If given, rows are drawn with replacement instead, in proportion."""


@flax.struct.dataclass
class Told:
    """What the model says of every example of a split as a stage is entered."""

    logits: Float[Array, "n c"]
    features: Float[Array, "n k"]
    """`Model.head.features`; of the training split not computed (k = 0)."""
    label: Int[Array, " n"]
    group: Int[Array, " n"]
    """-1 everywhere unless the method declares that it needs this split's groups."""
    inferred: Float[Array, "n m c"]
    """`Method.infer`, m = 0 without one."""


class Stage(NamedTuple):
    """One part of a method's training, with a schedule and an optimiser state of its own.

    `loss(method_state, hyper, model, params, batch, key) -> (scalar, (method_state, metrics))`, `params = {"model": ..., "method": ...}`.
    `enter(method_state, hyper, model, params, fresh, told) -> (method_state, params)` runs once before the stage; `fresh` are newly initialised
    parameters, `told` is a `Told` or None. A last stage without loss has no steps (share 0): its `enter` is the fit.
    """

    share: float
    """Of the run's steps, relative to the other stages' shares."""
    loss: Callable[..., Any] | None
    enter: Callable[..., Any] | None = None
    reads: Literal["", "train", "validation"] = ""
    """The split whose examples `enter` is told of."""
    draw: Callable[[Population], Rows] | None = None
    """A pure function; None: every row of the training split once an epoch."""
    trains: Literal["all", "head"] = "all"
    """"head": every parameter but the model's head stays as it is."""
    learning_rate: str = "learning_rate"
    """The traced number that is this stage's peak learning rate."""
    weight_decay: str = "weight_decay"
    """The traced number that is this stage's weight decay."""


REFUSED = "edits refused"
"""The verdict of a method that gave up its edits of a modality."""


class Method(NamedTuple):
    """A way of training, as a record of pure functions (see `methods/base.py`)."""

    init: Callable[[Key[Array, ""], Spec], tuple[Params, Any]]
    """(key, spec) -> (the method's own trainable parameters, its state)."""
    stages: tuple[Stage, ...]
    hyper: Mapping[str, float]
    """Every number that may be swept without a new compile."""
    explain: Callable[..., dict[str, dict[str, Any]]]
    """(method_state, hyper, model, params, batch, key) -> {"evidence": {m: [b, n]}, "chosen": {m: [b, n] in 0..1}, "edited": {m: Slots}}.

    Methods of causal mediation also tell "effects" {name: [b]} (TE, NDE image, TIE image ... in logits of the predicted class), "gates" {expert: [b]}
    (the router's, of sum 1) and "quality" {m: [b] in 0..1} of each modality's counterfactual.
    """
    predict: Callable[..., Array] | None = None
    """(method_state, hyper, model, params, slots, codes) -> logits [b, c]: the method's prediction where it is not `Outputs.logits`."""
    modes: Mapping[str, Callable[..., Array]] = {}
    """Other predictions of the same trained model by name, each as `predict`, which is one of them where there are any."""
    infer: Callable[..., dict[str, Array]] | None = None
    """(method_state, hyper, model, params, slots) -> {m: [b, c]}: for each modality, the class that its shortcut speaks for, as far as the method can
    tell without having been told."""
    verdicts: Callable[..., dict[str, dict[str, Array]]] | None = None
    """(method_state, modalities in order) -> {modality or "all": {name: scalar in 0..1}}: what it decided for itself, of which the report tells."""
    needs_groups: bool = False
    """Trains on group labels."""
    needs_validation_groups: bool = False
    """Fits something to the validation split's group labels."""
    needs_attribute_names: bool = False
    """Reads the names of the spurious attribute's values."""
    selection: Literal["worst_class", "worst_group"] = "worst_class"
    """The validation accuracy by which its authors select models; for methods that are told groups anyway it is always worst_group."""


@flax.struct.dataclass
class TrainState:
    step: Int[Array, ""]
    key: Key[Array, ""]
    """The member's root key: every random number is an address under it, so that resuming needs no history."""
    params: Params
    opt_state: Any
    method: Any
    hyper: dict[str, Float[Array, ""]]
