"""Yes/no questions about a coloured shape, whose wording tells the answer in training and lies in the flipped test: changing priors.

Command:   python -m cimrl_jax.main --config configs/easy_vqa.py
Cost:      about 2 min for erm and the ceiling, 1 seed, on 2 CPU cores
Result:    5 seeds x 1000 steps, worst group of test_balanced: ERM 1.6 ± 1.7, CIMRL 66.0 ± 5.6, ceiling 74.7 ± 2.1 %; CIMRL closes 88 % (82 to 94)
"""

config = {
    "methods": ("erm", "group_dro", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "easy_vqa"},
    "model": {"dim": 48, "image": {"encoder": "vit", "patch": 8, "depth": 2}, "text": {"encoder": "text_transformer", "depth": 2}},
    "train": {"steps": 1500, "batch_size": 64, "learning_rate": 1e-3},
}
