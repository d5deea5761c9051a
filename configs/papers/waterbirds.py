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
    "erm": {
        "methods": ("erm", "resample"),
        "train": {**SGD, "steps": steps(300, 128), "batch_size": 128, "learning_rate": 1e-3, "weight_decay": 1e-4},
        "source": "Sagawa et al. 2020, appendix C.2 (erm: section 3.1, table 1; resample: section 4, a point of the grid of table 3)",
    },
    # Standard regularisation. Table 3 has the best, by validation, of this, of a weight decay of .1 at a rate of 1e-4, and of group_dro_adjusted.
    "group_dro": {
        "methods": ("group_dro",),
        "train": {**SGD, "steps": steps(300, 128), "batch_size": 128, "learning_rate": 1e-3, "weight_decay": 1e-4},
        "method": {"group_dro": {"eta": 0.01, "adjustment": 0.0}},
        "source": "Sagawa et al. 2020, appendix C.2 (section 3.1, table 1); README and defaults (eta) of github.com/kohpangwei/group_DRO",
    },
    # The strong penalty, and the adjustments that the authors try with it. They state the epochs for the standard one only.
    "group_dro_adjusted": {
        "methods": ("group_dro",),
        "train": {**SGD, "steps": steps(300, 128), "batch_size": 128, "learning_rate": 1e-5, "weight_decay": 1.0},
        "evaluate": WORST_GROUP,
        "method": {"group_dro": {"eta": 0.01}},
        "sweep": {"method.group_dro.adjustment": (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)},
        "source": "Sagawa et al. 2020, appendix C.2 (section 3.3, table 2; section 4, table 3); defaults (eta) of github.com/kohpangwei/group_DRO",
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
    # Stage 2 of the authors is 500 steps of gradient descent without momentum on the whole held-out part, its gradients clipped to 1. They choose
    # gamma among 33 values from 4 to 20 and lam among 0, .1, .2 and .3 (wb_celeba.ipynb); these are the README's.
    "afr": {
        "methods": ("afr",),
        "train": {**SGD, "steps": steps(0.8 * 50, 32) + 500, "batch_size": 32, "learning_rate": 3e-3, "weight_decay": 1e-4},
        "evaluate": WORST_GROUP,
        "method": {
            "afr": {
                **{"first": steps(0.8 * 50, 32) / (steps(0.8 * 50, 32) + 500), "held_out": 0.2, "gamma": 10.0, "lam": 0.0},
                **{"head_learning_rate": 0.01, "head_weight_decay": 0.0},
            }
        },
        "source": "Qiu et al. 2023: README and notebooks/wb_celeba.ipynb of github.com/AndPotap/afr",
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
    # The defaults, around which the authors also draw at random. They do not divide IRM's loss by the penalty's weight.
    "subpopbench": {
        "methods": ("erm", "irm", "cvar_dro", "mixup"),
        "train": {**SGD, "steps": 5001, "batch_size": 108, "learning_rate": 1e-3, "weight_decay": 1e-4},
        "method": {"irm": {"penalty": 100.0, "anneal": 500 / 5001}, "cvar_dro": {"alpha": 0.1}, "mixup": {"alpha": 0.2, "at": "slots"}},
        "source": "Yang et al. 2023 (arXiv 2302.12254): hparams_registry.py, datasets.py and algorithms.py of github.com/YyzHarry/SubpopBench",
    },
    # CLIP's ResNet-50, of which the authors train the projections alone, with CLIP's own temperature, on batches uniform over the groups. The
    # released L_vc and L_lc are not the paper's (see the method).
    "clip_contrastive": {
        "methods": ("clip_contrastive",),
        "train": {**SGD, "steps": steps(300, 128), "batch_size": 128, "learning_rate": 1e-4, "weight_decay": 1e-5},
        "evaluate": WORST_GROUP,
        "method": {"clip_contrastive": {"spurious": "labels", "clip": "batch", "w_vc": 1.0, "w_lc": 1.0, "w_spurious": 1.0}},
        "source": "Yang et al. 2023 (arXiv 2304.03916): README, configs/ and losses.py of github.com/YuYang0901/CLIP-spurious-finetune",
    },
}
