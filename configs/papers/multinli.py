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
    "group_dro": {
        "methods": ("group_dro",),
        "train": {**ADAMW, "steps": steps(3, 32), "batch_size": 32, "learning_rate": 2e-5, "weight_decay": 0.0},
        "method": {"group_dro": {"eta": 0.01, "adjustment": 0.0}},
        "source": "Sagawa et al. 2020: README and defaults of github.com/kohpangwei/group_DRO",
    },
    # The authors' first stage is trained by SGD, and the error set's copies lengthen the epochs of the second.
    "jtt": {
        "methods": ("jtt",),
        "train": {**ADAMW, "steps": steps(2 + 5, 32), "batch_size": 32, "learning_rate": 2e-5, "weight_decay": 0.0},
        "evaluate": WORST_GROUP,
        "method": {"jtt": {"first": 2 / 7, "upweight": 4.0}},
        "source": "Liu et al. 2021: README and generate_downstream.py of github.com/anniesch/jtt",
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
}
