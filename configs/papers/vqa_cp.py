"""Published settings for VQA-CP v2 (about 438,000 training questions: Agrawal et al. 2018, arXiv 1712.00377).

Each entry but its `source` is an overlay for a config of the data set, whose question is the modality "text". Papers count epochs, here they are
steps. Nothing is written that the source does not say; where this project's method differs from the authors', the entry's comment says so.
"""

TRAINING = 438_000
CFVQA = {"optimizer": "adamw", "learning_rate": 3e-4, "weight_decay": 0.0, "batch_size": 256}
CSS = {
    **{"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0},
    **{"clip_norm": 0.25, "batch_size": 512},
}


def steps(epochs: float, batch_size: int) -> int:
    return round(epochs * TRAINING / batch_size)


settings = {
    # The authors raise Adam's rate from half to twice this over 7 epochs and quarter it every second epoch from the 14th on.
    "cf_vqa": {
        "methods": ("cf_vqa",),
        "train": {**CFVQA, "steps": steps(22, 256)},
        "method": {"cf_vqa": {"fusion": "sum", "biased": ("text",), "hidden": 1024, "branch_weight": 1.0}},
        "source": "Niu et al. 2021: cfvqa/options/vqacp2/smrl_cfvqa_sum.yaml of github.com/yuleiniu/cfvqa",
    },
    "cf_vqa_hm": {
        "methods": ("cf_vqa",),
        "train": {**CFVQA, "steps": steps(22, 256)},
        "method": {"cf_vqa": {"fusion": "hm", "biased": ("text",), "hidden": 1024, "branch_weight": 1.0}},
        "source": "Niu et al. 2021: cfvqa/options/vqacp2/smrl_cfvqa_hm.yaml of github.com/yuleiniu/cfvqa",
    },
    # The graph without a path from the image alone.
    "cf_vqa_simple": {
        "methods": ("cf_vqa",),
        "train": {**CFVQA, "steps": steps(22, 256)},
        "method": {"cf_vqa": {"fusion": "sum", "branches": ("text",), "biased": ("text",), "hidden": 1024, "branch_weight": 1.0}},
        "source": "Niu et al. 2021: cfvqa/options/vqacp2/smrl_cfvqasimple_sum.yaml of github.com/yuleiniu/cfvqa",
    },
    "rubi": {
        "methods": ("poe",),
        "train": {**CFVQA, "steps": steps(22, 256)},
        "method": {"poe": {"form": "rubi", "biased": ("text",), "hidden": 1024, "bias_weight": 1.0}},
        "source": "Cadene et al. 2019: rubi/options/vqacp2/rubi.yaml of github.com/cdancette/rubi.bootstrap.pytorch; Niu et al. 2021: smrl_rubi.yaml",
    },
    # The authors' optimiser is Adamax with its default rate; their bias is the frequency of the answers to each type of question.
    "lmh": {
        "methods": ("poe",),
        "train": {**CSS, "steps": steps(20, 512)},
        "method": {"poe": {"form": "lmh", "biased": ("text",), "entropy_weight": 0.36}},
        "source": "Chen et al. 2020: main.py (mode updn) and train.py of github.com/yanxinzju/CSS-VQA",
    },
    # Adamax, as above; the authors' ensemble is lmh, and they mask the single most critical word of a question.
    "css": {
        "methods": ("css",),
        "train": {**CSS, "steps": steps(20, 512)},
        "method": {"css": {"base": "poe", "share": 0.65, "top": 5}},
        "source": "Chen et al. 2020: main.py (mode q_v_debias) and train.py of github.com/yanxinzju/CSS-VQA",
    },
}
