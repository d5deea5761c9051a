"""Perturbed views of whole examples: each modality by its kind, on the device, inside the step."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from cimrl_jax.data import augment_image, augment_slots, augment_spectrogram, augment_table, augment_text
from cimrl_jax.types import Feature

Perturb = Callable[[Mapping[str, Array], Key[Array, ""]], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class ViewOptions:
    image: augment_image.Options = augment_image.Options()
    """Of every image modality."""
    text: augment_text.Options = augment_text.Options()
    """Of every text modality. Where a text was translated back beforehand (prepare --back-translate), half of its views are made of that version."""
    spectrogram: augment_spectrogram.Options = augment_spectrogram.Options()
    """Of every spectrogram modality."""
    table: augment_table.Options = augment_table.Options()
    """Of every table modality."""
    slots: augment_slots.Options = augment_slots.Options()
    """Of every modality that is slots already, unless several views of each example were made beforehand (a frozen encoder's option views)."""


def make_perturb(features: Mapping[str, Feature], options: ViewOptions | None = None, *, synonyms: Mapping[str, np.ndarray] | None = None) -> Perturb:
    """`(inputs, key) -> inputs`: another view of the same examples, of the same shapes and types; pure, to be jitted with the step.

    Each modality has a stream of random numbers of its own, so that adding one leaves the others' views as they were.
    `synonyms`: per text modality a table `[v, k]` (`data/synonyms.py`); without one, words are not replaced.
    """
    options = options or ViewOptions()
    changes = {name: _change(feature, options, (synonyms or {}).get(name)) for name, feature in features.items()}
    # Masked to 31 bits: what fold_in takes without an overflow warning.
    streams = {name: zlib.crc32(name.encode()) & 0x7FFFFFFF for name in features}

    def perturb(inputs: Mapping[str, Array], key: Key[Array, ""]) -> dict[str, Array]:
        return {name: changes[name](values, jax.random.fold_in(key, streams[name])) for name, values in inputs.items()}

    return perturb


def _change(feature: Feature, options: ViewOptions, synonyms: np.ndarray | None) -> Callable[[Array, Key[Array, ""]], Array]:
    match feature.kind:
        case "image":
            return functools.partial(augment_image.perturb, options=options.image, flip=feature.flip)
        case "text":
            table = np.zeros((len(feature.vocabulary), 1), np.int32) if synonyms is None else np.asarray(synonyms, np.int32)
            words, inner = augment_text.movable(feature.vocabulary), augment_text.continuing(feature.vocabulary)
            edit = functools.partial(
                augment_text.perturb,
                options=options.text,
                synonyms=jnp.asarray(table),
                words=jnp.asarray(words),
                pieces=jnp.asarray(inner) if inner.any() else None,
            )
            return functools.partial(_of_one_version, change=edit, views=feature.views) if feature.views > 1 else edit
        case "spectrogram":
            return functools.partial(augment_spectrogram.perturb, options=options.spectrogram)
        case "table":
            mean, std = (jnp.broadcast_to(jnp.asarray(values, jnp.float32), feature.shape) for values in (feature.mean, feature.std))
            return functools.partial(augment_table.perturb, options=options.table, mean=mean, std=std)
        case "slots" if feature.views > 1:
            return functools.partial(augment_slots.choose_view, views=feature.views)
        case "slots":
            return functools.partial(augment_slots.perturb, options=options.slots)


def _of_one_version(
    ids: Int[Array, "b m"], key: Key[Array, ""], *, change: Callable[[Array, Key[Array, ""]], Array], views: int
) -> Int[Array, "b m"]:
    """One of each text's versions (m = views * length), each as likely, changes places with the first, the one that is read, and is changed there."""
    choice, edit = jax.random.split(key)
    chosen = augment_slots.choose_view(ids[..., None], choice, views=views)[..., 0]
    length = ids.shape[1] // views
    return jnp.concatenate([change(chosen[:, :length], edit), chosen[:, length:]], axis=1)
