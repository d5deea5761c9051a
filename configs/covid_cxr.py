"""Chest X-rays and notes of patients with COVID-19 or something else, where the view tells: five folds by patient, `--data.fold 0` to 4.

Command:   python -m cimrl_jax.main --config configs/covid_cxr.py --data.path /where/metadata/and/images/lie
Cost:      about 1 min for erm and the ceiling, 1 seed, fold 0, on 2 CPU cores
Result:    1 seed, fold 0, accuracy / worst group of test: ERM 75.5 / 0, ceiling 83.0 / 25.0 % (other folds and methods: not yet measured)
"""

config = {
    "methods": ("erm", "group_dro", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "covid_cxr", "fold": 0},
    "model": {
        "dim": 48,
        "image": {"encoder": "vit", "patch": 16, "depth": 2},
        "text": {"encoder": "text_transformer", "depth": 2},
    },
    "train": {"steps": 300, "batch_size": 32, "learning_rate": 1e-3},
    "evaluate": {"selection": "average"},
}
