"""Every method on one data set, each in several settings, of which validation chooses: an overlay for the config of a data set.

Command:   python -m cimrl_jax.main --config configs/digits.py,configs/studies/baselines.py
Cost:      20 programs of together 135 members x 600 steps; 3 GB
Result:    the README's table; which settings were chosen: docs/RECIPE.md
"""

config = {
    "methods": (
        *("erm", "mixup", "cvar_dro", "lff", "jtt", "afr", "ccr", "poe", "cf_vqa", "css", "cimrl"),  # labels only
        *("dfr", "group_dro", "reweight", "resample", "subsample", "irm", "lisa", "clip_contrastive"),  # group labels
    ),
    "train": {"eval_every": 50},
    "sweep": {
        "method.cvar_dro.alpha": (0.1, 0.3),
        "method.lff.q": (0.5, 0.7),
        "method.jtt.upweight": (5.0, 20.0),
        "method.afr.gamma": (2.0, 4.0),
        "method.group_dro.weight_decay": (1e-4, 1.0),
        "method.reweight.weight_decay": (1e-4, 1.0),
        "method.irm.penalty": (10.0, 100.0),
    },
}
