"""Written and spoken digits whose ground's colour and speaker tell the class in training and lie in the flipped test.

Command:   python -m cimrl_jax.main --config configs/digits_av.py --data.path /where/mnist/and/fsdd/lie
Cost:      about 4 min for erm, cimrl and the ceiling x 2 seeds x 500 steps on 2 CPU cores
Result:    5 seeds x 400 steps, worst group of test_balanced: ERM 18.8 ± 5.9, CIMRL 53.2 ± 11.0, ceiling 82.0 ± 2.7 %;
           CIMRL closes 54 % (43 to 70) of the gap; all other methods: docs/RECIPE.md
"""

config = {
    "methods": ("erm", "group_dro", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "digits_av"},
    "model": {"dim": 48, "image": {"encoder": "vit", "depth": 2}, "audio": {"encoder": "spectrogram", "depth": 2}},
    "train": {"steps": 800, "batch_size": 64, "learning_rate": 1e-3},
}
