"""Parity of two modalities, each of which also carries a shortcut: what causal mediation with debiasing experts makes of it, beside its baselines.

Neither modality alone tells the label but by its shortcut, which agrees with it in 9 of 10 training examples and in 1 of 10 of test_flipped.
With 1,000 examples empirical risk minimisation fits the exceptions by heart; docs/MEDIATION.md has the figures.

Command:   python -m cimrl_jax.main --config configs/mediation.py
Cost:      mediation_moe about 5 min for 5 seeds on one shared CPU core, compile included; the others under a minute each
Result:    docs/MEDIATION.md (of the last step; a run of this config selects among the last steps on validation)
"""

config = {
    "methods": ("erm", "posthoc", "poe", "cf_vqa", "mediation_moe"),
    "seeds": (0, 1, 2, 3, 4),
    "data": {"name": "synthetic", "mode": "xor", "shortcut_in": "each", "correlation": 0.9, "width": 24, "shortcut_strength": 3.0, "train": 1000},
    "model": {"dim": 32, "m0": {"encoder": "identity"}, "m1": {"encoder": "identity"}},
    "train": {"steps": 500, "batch_size": 64, "learning_rate": 1e-3},
}
