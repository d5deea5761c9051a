"""CIMRL without each of its parts, with other weights of them, and on other encoders, on `digits`.

Command:   python -m cimrl_jax.main study --config configs/studies/ablations.py
           On another data set: --data.ground texture; only the parts: --only whole,without_ci,without_md,without_if
Cost:      16 runs of ERM, CIMRL and the ceiling x 5 seeds x 600 steps (6 min each on 2 CPU cores; patches of 4 more), of which the 3 grids
           train 5 members a seed in place of one: about 3 hours altogether
Result:    the parts (docs/RECIPE.md): without interventions 54 % of the gap on `digits` instead of 96, 9 on `synthetic`, 24 on `easy_vqa`; without
           contrastive invariance 59 instead of 90 on `easy_vqa`; without disentanglement 2 to 3 less; weights on
           `synthetic`: flat but for that of interventions; on `digits` `w_ci` 0 to 1: 102 to 84 %, `w_md` 0 to 5: 97 to 93, `w_if` 0, .3, 1, 3, 10:
           44, 86, 99, 100, 99; with 0 to 2 blocks for words, 0 to 4 for the picture, patches of 14: 96 to 100 %;
           patches of 4 not yet measured
"""


def cimrl(**options: object) -> dict:
    return {"method": {"cimrl": options}}


def grid(weight: str, *values: float) -> dict:
    # One program for all values; validation chooses, and the table of the settings tried shows every one.
    return {"sweep": {f"method.cimrl.{weight}": values}}


def encoders(**options: int) -> dict:
    image = {key: value for key, value in options.items() if key == "patch"} | {"encoder": "vit", "depth": options.get("image_depth", 2)}
    return {"model": {"image": image, "text": {"encoder": "text_transformer", "depth": options.get("text_depth", 1)}}}


PARTS = {
    "without_ci": cimrl(w_ci=0.0),
    "without_md": cimrl(w_md=0.0),
    "without_if": cimrl(w_if=0.0),
    # What the equations leave open: the loss on the edited examples, how slots are found, and the refit of the head.
    "without_edited_labels": cimrl(nu=0.0),
    "slots_by_chance": cimrl(identify="random", intervention="donor"),
    "without_refit": cimrl(refit=False),
}
GRIDS = {
    "grid_ci": grid("w_ci", 0.0, 0.03, 0.1, 0.3, 1.0),
    "grid_md": grid("w_md", 0.0, 0.15, 0.5, 1.5, 5.0),
    "grid_if": grid("w_if", 0.0, 0.3, 1.0, 3.0, 10.0),
}

study = {
    "base": {"config": "configs/digits.py", "methods": ("erm", "cimrl"), "seeds": 5, "train": {"steps": 600, "eval_every": 50}},
    "runs": {
        "whole": {},
        **PARTS,
        **GRIDS,
        "words_only": encoders(text_depth=0),
        "text_depth_2": encoders(text_depth=2),
        "patches_only": encoders(image_depth=0),
        "image_depth_4": encoders(image_depth=4),
        "patch_4": encoders(patch=4),
        "patch_14": encoders(patch=14),
    },
    "table": ["whole", *PARTS, *GRIDS],
    "plots": {
        "depth of the text's encoder": {"0": "words_only", "1": "whole", "2": "text_depth_2"},
        "depth of the image's encoder": {"0": "patches_only", "2": "whole", "4": "image_depth_4"},
        "side of a patch": {"4": "patch_4", "7": "whole", "14": "patch_14"},
    },
}
