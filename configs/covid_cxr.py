"""Chest X-rays and notes of patients with COVID-19 or something else, where the view tells, on frozen published encoders whose features are kept.

Weights:   python launch/fetch_weights.py dinov2-small weights/dinov2-small && python launch/fetch_weights.py minilm weights/minilm
Command:   python -m cimrl_jax.main --config configs/covid_cxr.py --data.path /where/metadata/and/images/lie
           all five folds by patient: python -m cimrl_jax.main study --config configs/studies/covid_cxr.py --data.path /where/they/lie
Cost:      about 10 min for all methods, 5 seeds and the ceiling on 2 CPU cores beside other work, features kept
Result:    configs/studies/covid_cxr.py says it for all folds: nothing is told apart
"""

FROZEN = {"freeze": "all", "features": "disk"}

config = {
    "methods": ("erm", "group_dro", "jtt", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "covid_cxr", "fold": 0, "length": 32},
    "model": {
        "dim": 48,
        "image": {"pretrained": "weights/dinov2-small", "image_size": 224, "pool": 4, **FROZEN},
        "text": {"pretrained": "weights/minilm", **FROZEN},
    },
    "train": {"steps": 100, "batch_size": 32, "learning_rate": 1e-3, "eval_every": 20},
    "evaluate": {"selection": "average"},
}
