"""Sarcasm in posts whose hashtags tell the label: trained on MMSD, tested on its balanced and flipped posts, MMSD2.0 and rewritten posts.

Command:   python -m cimrl_jax.main --config configs/mmsd.py --data.path /where/mmsd1/mmsd2/and/dmsd_cl/lie
Cost:      about 2 min for erm and the ceiling, 1 seed, on 2 CPU cores
Result:    5 seeds, worst group of test_balanced: ERM 61.0 ± 2.0, CIMRL 64.3 ± 1.0, ceiling 68.8 ± 2.2 %; CIMRL closes 42 % (35 to 51)
           of the gap; others: docs/MEDIATION.md
"""

config = {
    "methods": ("erm", "group_dro", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "mmsd", "normalise_numbers": True},
    "model": {"dim": 48, "text": {"encoder": "text_transformer", "depth": 2}, "attributes": {"encoder": "text_transformer", "depth": 1}},
    "train": {"steps": 800, "batch_size": 64, "learning_rate": 1e-3},
}
