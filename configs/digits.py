"""Real handwritten digits whose background colour and caption tell the class in training and lie in the flipped test.

Command:   python -m cimrl_jax.main --config configs/digits.py
Cost:      (to be measured)
Result:    (to be measured)
"""

config = {
    "name": "digits",
    "workdir": "runs/digits",
    "methods": ("erm", "group_dro", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "digits"},
    "model": {"dim": 48, "image": {"encoder": "vit", "depth": 2}},
    "train": {"steps": 600, "batch_size": 64, "learning_rate": 1e-3},
}
