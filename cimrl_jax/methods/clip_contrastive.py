"""Contrastive fine-tuning against spurious correlations (Yang et al. 2023, arXiv 2304.03916), the image's place taken by all modalities' codes.

Embedded in one space: the example (I, a linear map of all codes), the prompt of each class (T) and of each value of the spurious attribute (S).

    L    = L_CLIP + w_vc L_vc + w_lc L_lc + w_spurious (L_vs or L_ls)
    L_CLIP = CE(cos(I, T) / tau) over the classes, or over the batch's prompts and images both ways
    L_vc = mean cos(I_i, I_j) where labels differ - mean where they are the same (i != j)
    L_lc = mean cos(T_c, T_d), c != d          (a class has one prompt, hence no pair of the same label)
    L_vs = CE(cos(I, S) / tau) over the attribute's values         sees group labels
    L_ls = mean |cos(T_c, S_a)|                                    sees only the names of classes and attribute values

The prediction is cos(I, T) / tau. In the authors' released code L_vc compares a constant column and L_lc's prompts are labelled in another order than
they lie; these are the equations. Prompts are free vectors, or names that the model's own text modality reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cimrl_jax.errors import UserError
from cimrl_jax.losses import cosines, cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Slots, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """Where prompts come from, what is known of the shortcut, and the weights."""

    prompts: Literal["learned", "text"] = "learned"
    """Prompts are vectors of their own, or the names as the first text modality reads them."""
    spurious: Literal["labels", "names", "none"] = "labels"
    """Labels: L_vs, with group labels. Names: L_ls, with prompts=text and no label but the class. None: neither."""
    clip: Literal["classes", "batch"] = "classes"
    """L_CLIP against the prompts of all classes, or of the examples in the batch, both ways."""
    width: Annotated[int, Range(low=1)] = 64
    """Width of the joint space."""
    tau: float = 0.1
    """Temperature of L_CLIP and L_vs."""
    w_vc: float = 1.0
    """Weight of L_vc."""
    w_lc: float = 1.0
    """Weight of L_lc."""
    w_spurious: float = 1.0
    """Weight of L_vs or L_ls."""

    def __post_init__(self) -> None:
        if self.spurious == "names" and self.prompts != "text":
            raise UserError(f"spurious=names compares names, but prompts={self.prompts} reads none; set prompts=text, or spurious=labels")


def build(options: Options) -> Method:
    """The method record."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        keys, state = jax.random.split(key, 3), {}
        wide = spec.dim * (len(spec.slots) + 1)
        params = {"joint": jax.random.normal(keys[0], (wide, options.width)) * wide**-0.5}
        if options.spurious == "labels":
            if not spec.group_attribute:
                raise UserError("method clip_contrastive: this data set does not say which attribute value a group has; set spurious=names or none")
            state["attribute"] = jnp.asarray(spec.group_attribute, jnp.int32)
        if options.prompts == "text":
            assert spec.prompts is not None
            params["text"] = jax.random.normal(keys[1], (spec.dim, options.width)) * spec.dim**-0.5
            named = {"classes": spec.prompts.classes, "attributes": spec.prompts.attributes}
            state["prompts"] = {spec.prompts.modality: jax.tree.map(jnp.asarray, named)}
        else:
            params["classes"] = jax.random.normal(keys[1], (spec.num_classes, options.width))
            if options.spurious == "labels":
                params["attributes"] = jax.random.normal(keys[2], (max(spec.group_attribute) + 1, options.width))
        return params, state

    def prompts(state: Any, model: Model, params: Params, of: Literal["classes", "attributes"]) -> Float[Array, "k w"]:
        if options.prompts == "learned":
            return params["method"][of]
        [(modality, named)] = state["prompts"].items()
        inputs = named[of]
        present = {m: jnp.full(x.shape[:1], m == modality) for m, x in inputs.items()}
        codes = model.encode(params["model"], model.embed(params["model"], inputs, present), None)
        return codes[modality] @ params["method"]["text"]

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        image = model.head.features(base.forward(model, params, batch, key).codes) @ params["method"]["joint"]
        classes = prompts(state, model, params, "classes")
        logits = cosines(image, classes) / hyper["tau"]
        if options.clip == "classes":
            l_clip = masked_mean(cross_entropy(logits, batch.label), batch.weight)
        else:
            l_clip = both_ways(logits, batch.label, batch.weight)
        l_vc, l_lc, l_spurious = image_contrast(image, batch.label, batch.weight), prompt_contrast(classes), jnp.zeros(())
        if options.spurious == "labels":
            told = cosines(image, prompts(state, model, params, "attributes")) / hyper["tau"]
            l_spurious = masked_mean(cross_entropy(told, state["attribute"][batch.group]), batch.weight)
        if options.spurious == "names":
            l_spurious = jnp.mean(jnp.abs(cosines(classes, prompts(state, model, params, "attributes"))))
        total = l_clip + hyper["w_vc"] * l_vc + hyper["w_lc"] * l_lc + hyper["w_spurious"] * l_spurious
        return total, (state, base.figures(total, logits, batch, l_clip=l_clip, l_vc=l_vc, l_lc=l_lc, l_spurious=l_spurious))

    def predict(
        state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
    ) -> Float[Array, "b c"]:
        image = model.head.features(codes) @ params["method"]["joint"]
        return cosines(image, prompts(state, model, params, "classes")) / hyper["tau"]

    return Method(
        init=init,
        stages=(Stage(share=1.0, loss=loss),),
        hyper=base.swept(options),
        explain=base.explainer(predict),
        predict=predict,
        needs_groups=options.spurious == "labels",
        needs_attribute_names=options.prompts == "text",
    )


def both_ways(logits: Float[Array, "b c"], label: Int[Array, " b"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    """CLIP's loss on the batch: each image against the prompts of all examples, each example's prompt against all images. Padding is in no sum."""
    pairs = logits[:, label]  # [b, b]: image i, prompt of example j
    near = jnp.diagonal(pairs)
    usable = weight > 0
    images = jax.nn.logsumexp(jnp.where(usable[None, :], pairs, -jnp.inf), axis=1) - near
    texts = jax.nn.logsumexp(jnp.where(usable[:, None], pairs, -jnp.inf), axis=0) - near
    return masked_mean((images + texts) / 2, weight)


def image_contrast(image: Float[Array, "b w"], label: Int[Array, " b"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    """L_vc. A pair weighs the product of its examples' weights; where there is no pair of a kind, its mean is 0."""
    pair = weight[:, None] * weight[None, :] * (1.0 - jnp.eye(len(weight)))
    same, cosine = label[:, None] == label[None, :], cosines(image, image).ravel()
    return masked_mean(cosine, jnp.where(same, 0.0, pair).ravel()) - masked_mean(cosine, jnp.where(same, pair, 0.0).ravel())


def prompt_contrast(classes: Float[Array, "c w"]) -> Float[Array, ""]:
    """L_lc: the mean cosine of two classes' prompts."""
    return masked_mean(cosines(classes, classes).ravel(), 1.0 - jnp.eye(len(classes)).ravel())
