"""Published settings for CelebA, blond hair against gender (162,770 training images), with an ImageNet ResNet-50 unless the entry says otherwise.

Each entry but its `source` is an overlay for a config of the data set. Papers count epochs, here they are steps. Nothing is written that the source
does not say; where this project's method differs from the authors', the entry's comment says so.
"""

TRAINING = 162_770
SGD = {"optimizer": "sgd", "momentum": 0.9, "schedule": "constant", "warmup": 0.0, "clip_norm": 0.0}
WORST_GROUP = {"selection": "worst_group"}


def steps(epochs: float, batch_size: int) -> int:
    return round(epochs * TRAINING / batch_size)


settings = {
    "erm": {
        "methods": ("erm", "resample"),
        "train": {**SGD, "steps": steps(50, 128), "batch_size": 128, "learning_rate": 1e-4, "weight_decay": 1e-4},
        "source": "Sagawa et al. 2020, appendix C.2 (erm: section 3.1, table 1; resample: section 4, a point of the grid of table 3)",
    },
    # Standard regularisation. Table 3 has the best, by validation, of this, of a weight decay of .01, and of group_dro_adjusted.
    "group_dro": {
        "methods": ("group_dro",),
        "train": {**SGD, "steps": steps(50, 128), "batch_size": 128, "learning_rate": 1e-4, "weight_decay": 1e-4},
        "method": {"group_dro": {"eta": 0.01, "adjustment": 0.0}},
        "source": "Sagawa et al. 2020, appendix C.2 (section 3.1, table 1); README and defaults (eta) of github.com/kohpangwei/group_DRO",
    },
    # The strong penalty, and the adjustments that the authors try with it. They state the epochs for the standard one only.
    "group_dro_adjusted": {
        "methods": ("group_dro",),
        "train": {**SGD, "steps": steps(50, 128), "batch_size": 128, "learning_rate": 1e-5, "weight_decay": 0.1},
        "evaluate": WORST_GROUP,
        "method": {"group_dro": {"eta": 0.01}},
        "sweep": {"method.group_dro.adjustment": (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)},
        "source": "Sagawa et al. 2020, appendix C.2 (section 3.3, table 2; section 4, table 3); defaults (eta) of github.com/kohpangwei/group_DRO",
    },
    # The error set's copies lengthen the authors' second-stage epochs, by how much is not known beforehand; here its epochs are those of the split.
    "jtt": {
        "methods": ("jtt",),
        "train": {**SGD, "steps": steps(1 + 50, 64), "batch_size": 64, "learning_rate": 1e-5, "weight_decay": 0.1},
        "evaluate": WORST_GROUP,
        "method": {"jtt": {"first": 1 / 51, "upweight": 50.0}},
        "source": "Liu et al. 2021: README and generate_downstream.py of github.com/anniesch/jtt",
    },
    # A ResNet-18. The authors' optimiser is Adam with the weight decay in the gradient.
    "lff": {
        "methods": ("lff",),
        "train": {
            **{"optimizer": "adamw", "schedule": "constant", "warmup": 0.0, "clip_norm": 0.0},
            **{"steps": 200 * 636, "batch_size": 256, "learning_rate": 1e-4, "weight_decay": 1e-4},
        },
        "method": {"lff": {"q": 0.7, "decay": 0.7}},
        "source": "Nam et al. 2020: config.py (celeba) and train.py of github.com/alinlab/LfF",
    },
    # The authors draw 16 images of each of the 4 groups a step, and call ceil(1387 / 16) steps an epoch. They cut patches into one another (CutMix).
    "lisa": {
        "methods": ("lisa",),
        "train": {**SGD, "steps": 50 * 87, "batch_size": 4 * 16, "learning_rate": 1e-4, "weight_decay": 1e-4},
        "evaluate": WORST_GROUP,
        "method": {"lisa": {"p_sel": 0.5, "alpha": 2.0, "at": "slots"}},
        "source": "Yao et al. 2022: README and subpopulation_shifts/ of github.com/huaxiuyao/LISA",
    },
    "dfr": {
        "methods": ("dfr",),
        "train": {**SGD, "steps": steps(50, 128), "batch_size": 128, "learning_rate": 1e-3, "weight_decay": 1e-4},
        "method": {"dfr": {"refits": 20}},
        "source": "Kirichenko et al. 2022: README and dfr_evaluate_spurious.py of github.com/PolinaKirichenko/deep_feature_reweighting",
    },
    # Stage 2 of the authors is 1,000 steps of gradient descent without momentum on the whole held-out part, at a constant rate, its gradients
    # clipped to 1. They choose gamma among 10 values from 1 to 3 and lam among .001, .01 and .1 (wb_celeba.ipynb); these are the README's.
    "afr": {
        "methods": ("afr",),
        "train": {
            **{**SGD, "schedule": "cosine"},
            **{"steps": steps(0.8 * 20, 100) + 1000, "batch_size": 100, "learning_rate": 3e-3, "weight_decay": 1e-4},
        },
        "evaluate": WORST_GROUP,
        "method": {
            "afr": {
                **{"first": steps(0.8 * 20, 100) / (steps(0.8 * 20, 100) + 1000), "held_out": 0.2, "gamma": 1.44, "lam": 0.001},
                **{"head_learning_rate": 0.02, "head_weight_decay": 0.0},
            }
        },
        "source": "Qiu et al. 2023: README and notebooks/wb_celeba.ipynb of github.com/AndPotap/afr",
    },
    # The authors train for 60 epochs, with batches of 2, 4, ... up to 128 drawn like the rest; steps and batch size are left to the run.
    "balancing": {
        "methods": ("erm", "resample", "subsample", "group_dro"),
        "train": SGD,
        "evaluate": WORST_GROUP,
        "method": {"group_dro": {"eta": 0.1}},
        "sweep": {"train.learning_rate": (1e-5, 1e-4, 1e-3), "train.weight_decay": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
        "source": "Idrissi et al. 2022: train.py of github.com/facebookresearch/BalancingGroups",
    },
    # The defaults, around which the authors also draw at random. They do not divide IRM's loss by the penalty's weight.
    "subpopbench": {
        "methods": ("erm", "irm", "cvar_dro", "mixup"),
        "train": {**SGD, "steps": 30_001, "batch_size": 108, "learning_rate": 1e-3, "weight_decay": 1e-4},
        "method": {"irm": {"penalty": 100.0, "anneal": 500 / 30_001}, "cvar_dro": {"alpha": 0.1}, "mixup": {"alpha": 0.2, "at": "slots"}},
        "source": "Yang et al. 2023 (arXiv 2302.12254): hparams_registry.py, datasets.py and algorithms.py of github.com/YyzHarry/SubpopBench",
    },
}
