"""Published settings for MultiNLI, entailment against negation words (206,175 training pairs), with BERT-base uncased.

Each entry but its `source` is an overlay for a config of the data set. Papers count epochs, here they are steps. Nothing is written that the source
does not say; where this project's method differs from the authors', the entry's comment says so.
"""

TRAINING = 206_175
ADAMW = {"optimizer": "adamw", "schedule": "linear", "warmup": 0.0, "clip_norm": 1.0}
WORST_GROUP = {"selection": "worst_group"}


def steps(epochs: float, batch_size: int) -> int:
    return round(epochs * TRAINING / batch_size)


settings = {
    # Early stopping: to convergence, the authors train for 20 epochs.
    "erm": {
        "methods": ("erm", "resample"),
        "train": {**ADAMW, "steps": steps(3, 32), "batch_size": 32, "learning_rate": 2e-5, "weight_decay": 0.0},
        "evaluate": WORST_GROUP,
        "source": "Sagawa et al. 2020, appendix C.2 (section 4, table 3); run_expt.py (clip_norm) of github.com/kohpangwei/group_DRO",
    },
    "group_dro": {
        "methods": ("group_dro",),
        "train": {**ADAMW, "steps": steps(3, 32), "batch_size": 32, "learning_rate": 2e-5, "weight_decay": 0.0},
        "method": {"group_dro": {"eta": 0.01, "adjustment": 0.0}},
        "source": "Sagawa et al. 2020, appendix C.2 (section 4, table 3); README and defaults (eta, clip_norm) of github.com/kohpangwei/group_DRO",
    },
    # The authors' first stage is trained by SGD, and the error set's copies lengthen the epochs of the second.
    "jtt": {
        "methods": ("jtt",),
        "train": {**ADAMW, "steps": steps(2 + 5, 32), "batch_size": 32, "learning_rate": 2e-5, "weight_decay": 0.0},
        "evaluate": WORST_GROUP,
        "method": {"jtt": {"first": 2 / 7, "upweight": 4.0}},
        "source": "Liu et al. 2021: README and generate_downstream.py of github.com/anniesch/jtt",
    },
    # The authors clip nothing, and lower the rate once an epoch.
    "dfr": {
        "methods": ("dfr",),
        "train": {**ADAMW, "clip_norm": 0.0, "steps": steps(10, 16), "batch_size": 16, "learning_rate": 1e-5, "weight_decay": 1e-4},
        "method": {"dfr": {"refits": 20}},
        "source": "Izmailov et al. 2022: README and dfr_evaluate_spurious.py of github.com/izmailovpavel/spurious_feature_learning",
    },
    # Stage 2 of the authors is 200 steps of gradient descent without momentum on the whole held-out part, at a constant rate. They name no gamma and
    # lam: each seed's are the best of this grid by validation.
    "afr": {
        "methods": ("afr",),
        "train": {**ADAMW, "steps": steps(0.8 * 3, 32) + 200, "batch_size": 32, "learning_rate": 2e-5, "weight_decay": 0.0},
        "evaluate": WORST_GROUP,
        "method": {
            "afr": {
                **{"first": steps(0.8 * 3, 32) / (steps(0.8 * 3, 32) + 200), "held_out": 0.2},
                **{"head_learning_rate": 0.01, "head_weight_decay": 0.0},
            }
        },
        "sweep": {"method.afr.gamma": tuple(10 ** (2 + i / 3) for i in range(10)), "method.afr.lam": tuple(2.0 * i for i in range(26))},
        "source": "Qiu et al. 2023: README and notebooks/multinli.ipynb of github.com/AndPotap/afr",
    },
    # The authors train for 7 epochs, by SGD, with batches of 2, 4, ... up to 32 drawn like the rest; steps and batch size are left to the run.
    "balancing": {
        "methods": ("erm", "resample", "subsample", "group_dro"),
        "train": {"optimizer": "sgd", "momentum": 0.9, "schedule": "linear", "warmup": 0.0, "clip_norm": 0.0},
        "evaluate": WORST_GROUP,
        "method": {"group_dro": {"eta": 0.1}},
        "sweep": {"train.learning_rate": (1e-5, 1e-4, 1e-3), "train.weight_decay": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
        "source": "Idrissi et al. 2022: train.py and models.py of github.com/facebookresearch/BalancingGroups",
    },
    # The defaults, around which the authors also draw at random. Theirs is a dropout of .5 before the head, and IRM's loss is not divided by the
    # penalty's weight.
    "subpopbench": {
        "methods": ("erm", "irm", "cvar_dro", "mixup"),
        "train": {**ADAMW, "steps": 30_001, "batch_size": 32, "learning_rate": 1e-5, "weight_decay": 1e-4},
        "method": {"irm": {"penalty": 100.0, "anneal": 500 / 30_001}, "cvar_dro": {"alpha": 0.1}, "mixup": {"alpha": 0.2, "at": "codes"}},
        "source": "Yang et al. 2023 (arXiv 2302.12254): hparams_registry.py, datasets.py and algorithms.py of github.com/YyzHarry/SubpopBench",
    },
}
