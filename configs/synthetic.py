"""Generated slots with a known cause and a known shortcut in each of two modalities: the quickest controlled study.

Command:   python -m cimrl_jax.main --config configs/synthetic.py
Cost:      (to be measured)
Result:    (to be measured)
"""

config = {
    "name": "synthetic",
    "workdir": "runs/synthetic",
    "methods": ("erm", "group_dro", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "synthetic"},
    "model": {"dim": 32, "m0": {"encoder": "identity"}, "m1": {"encoder": "identity"}},
    "train": {"steps": 400, "batch_size": 64, "learning_rate": 1e-3},
}
