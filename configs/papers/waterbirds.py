"""Published settings for Waterbirds (4,795 training images) with an ImageNet ResNet-50.

Each entry but its `source` is an overlay for a config of the data set. Papers count epochs, here they are steps. Nothing is written that the source
does not say; where this project's method differs from the authors', the entry's comment says so.
"""

TRAINING = 4795
SGD = {"optimizer": "sgd", "momentum": 0.9, "schedule": "constant", "warmup": 0.0, "clip_norm": 0.0}
WORST_GROUP = {"selection": "worst_group"}


def steps(epochs: float, batch_size: int) -> int:
    return round(epochs * TRAINING / batch_size)


settings = {
    "group_dro": {
        "methods": ("group_dro",),
        "train": {**SGD, "steps": steps(300, 128), "batch_size": 128, "learning_rate": 1e-3, "weight_decay": 1e-4},
        "method": {"group_dro": {"eta": 0.01, "adjustment": 0.0}},
        "source": "Sagawa et al. 2020: README and defaults of github.com/kohpangwei/group_DRO",
    },
    # The error set's copies lengthen the authors' second-stage epochs, by how much is not known beforehand; here its epochs are those of the split.
    "jtt": {
        "methods": ("jtt",),
        "train": {**SGD, "steps": steps(60 + 300, 64), "batch_size": 64, "learning_rate": 1e-5, "weight_decay": 1.0},
        "evaluate": WORST_GROUP,
        "method": {"jtt": {"first": 60 / 360, "upweight": 100.0}},
        "source": "Liu et al. 2021: README and generate_downstream.py of github.com/anniesch/jtt",
    },
    # The authors draw 16 images of each of the 4 groups a step, which give 32 mixtures, and call ceil(56 / 16) steps an epoch.
    "lisa": {
        "methods": ("lisa",),
        "train": {**SGD, "steps": 300 * 4, "batch_size": 4 * 16, "learning_rate": 1e-3, "weight_decay": 1e-4},
        "evaluate": WORST_GROUP,
        "method": {"lisa": {"p_sel": 0.5, "alpha": 2.0, "at": "slots"}},
        "source": "Yao et al. 2022: README and subpopulation_shifts/ of github.com/huaxiuyao/LISA",
    },
    "dfr": {
        "methods": ("dfr",),
        "train": {**SGD, "steps": steps(100, 32), "batch_size": 32, "learning_rate": 1e-3, "weight_decay": 1e-3},
        "method": {"dfr": {"refits": 20}},
        "source": "Kirichenko et al. 2022: README and dfr_evaluate_spurious.py of github.com/PolinaKirichenko/deep_feature_reweighting",
    },
    # Stage 2 of the authors is 500 steps of gradient descent without momentum on the whole held-out part.
    "afr": {
        "methods": ("afr",),
        "train": {**SGD, "steps": steps(0.8 * 40, 32) + 500, "batch_size": 32, "learning_rate": 3e-3, "weight_decay": 1e-4},
        "evaluate": WORST_GROUP,
        "method": {
            "afr": {
                **{"first": steps(0.8 * 40, 32) / (steps(0.8 * 40, 32) + 500), "held_out": 0.2, "gamma": 14.0, "lam": 0.2},
                **{"head_learning_rate": 0.02, "head_weight_decay": 0.0},
            }
        },
        "source": "Qiu et al. 2023: README of github.com/AndPotap/afr",
    },
    # The authors train for 360 epochs, with batches of 2, 4, ... up to 128 drawn like the rest; steps and batch size are left to the run.
    "balancing": {
        "methods": ("erm", "resample", "subsample", "group_dro"),
        "train": SGD,
        "evaluate": WORST_GROUP,
        "method": {"group_dro": {"eta": 0.1}},
        "sweep": {"train.learning_rate": (1e-5, 1e-4, 1e-3), "train.weight_decay": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
        "source": "Idrissi et al. 2022: train.py of github.com/facebookresearch/BalancingGroups",
    },
}
