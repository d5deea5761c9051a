"""How far the recipe carries: how strong the shortcut is, how few contradict it, noisy labels, other sizes, and where it should fail.

Command:   python -m cimrl_jax.main study --config configs/studies/robustness.py
           One plot's runs: --only correlation_80,correlation_90,correlation_95,correlation_98,correlation_99
Cost:      18 runs on `synthetic` (5 methods and the ceiling x 5 seeds x 400 steps, about 6 min each on 2 CPU cores), 5 on `digits` (600 steps,
           about 15 min each): about 3 hours altogether
Result:    docs/RECIPE.md, "How far it carries": ERM and CIMRL
"""

DIGITS = {"config": "configs/digits.py", "train": {"steps": 600}}


def data(**options: object) -> dict:
    return {"data": options}


study = {
    "base": {"config": "configs/synthetic.py", "methods": ("erm", "jtt", "group_dro", "dfr", "cimrl"), "seeds": 5, "train": {"eval_every": 50}},
    "runs": {
        "correlation_80": data(correlation=0.8),
        "correlation_90": data(correlation=0.9),
        "correlation_95": data(correlation=0.95),  # the config as it is
        "correlation_98": data(correlation=0.98),
        "correlation_99": data(correlation=0.99),
        "dim_16": {"model": {"dim": 16}},
        "dim_64": {"model": {"dim": 64}},
        "dim_128": {"model": {"dim": 128}},
        "batch_16": {"train": {"batch_size": 16}},
        "batch_32": {"train": {"batch_size": 32}},
        "batch_256": {"train": {"batch_size": 256}},
        # `synthetic` has no noisy labels; `digits` has.
        "label_noise_0": DIGITS,
        "label_noise_5": DIGITS | data(label_noise=0.05),
        "label_noise_10": DIGITS | data(label_noise=0.1),
        "label_noise_20": DIGITS | data(label_noise=0.2),
        # Failure modes: the columns of the first table.
        "two_shortcuts": DIGITS | data(separate=True),  # the caption's does not agree with the ground's
        "one_modality": data(shortcut_in="first"),
        "no_shortcut": data(correlation=0.5),
        "as_strong_as_the_cause": data(correlation=0.9, shortcut_strength=1.0),  # as likely, and as long a vector, as the cause
        "weaker_than_the_cause": data(correlation=0.9, shortcut_strength=0.5),
        "all_agree": data(correlation=1.0),  # no example contradicts it
        "across_modalities": data(shortcut_in="cross"),  # no modality alone tells it, so no reader of one finds it
        "xor": data(mode="xor"),
    },
    "plots": {
        "correlation": {
            **{"0.8": "correlation_80", "0.9": "correlation_90", "0.95": "correlation_95", "0.98": "correlation_98", "0.99": "correlation_99"},
        },
        "share of examples that contradict the shortcut": {
            **{"0.2": "correlation_80", "0.1": "correlation_90", "0.05": "correlation_95", "0.02": "correlation_98", "0.01": "correlation_99"},
        },
        "share of wrong labels": {"0": "label_noise_0", "0.05": "label_noise_5", "0.1": "label_noise_10", "0.2": "label_noise_20"},
        "model.dim": {"16": "dim_16", "32": "correlation_95", "64": "dim_64", "128": "dim_128"},
        "train.batch_size": {"16": "batch_16", "32": "batch_32", "64": "correlation_95", "256": "batch_256"},
    },
}
