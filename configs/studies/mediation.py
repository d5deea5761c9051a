"""What each part of causal mediation is worth: scores, filter, router's objective, fusion, CIMRL's counterfactuals, identification and losses.

Command:   python -m cimrl_jax.main study --config configs/studies/mediation.py
           On another data set: --base.config configs/digits.py; only some: --only whole,spoilt,spoilt_unfiltered
Cost:      19 runs of ERM, mediation_moe and the ceiling x 5 seeds x 500 steps
Result:    not yet measured as one run; what is known of single ones is in docs/MEDIATION.md
"""


def mediation(**options: object) -> dict:
    return {"method": {"mediation_moe": options}}


SCORES = ("attention", "grad_x_input", "occlusion")
study = {
    "base": {"config": "configs/mediation.py", "methods": ("erm", "mediation_moe"), "seeds": 5},
    "runs": {
        "whole": {},
        "without_edits": mediation(edit=False),
        "without_original": mediation(w_original=0.0),
        # CIMRL's biased reference tells which slots carry the shortcut; the core is what the joint expert rests on beside them.
        "identification_of_cimrl": mediation(scores="reference"),
        "losses_of_cimrl": mediation(cimrl=True),
        "with_cimrl": mediation(scores="reference", cimrl=True),
        **{f"scores_{kind}": mediation(scores=kind) for kind in SCORES},
        "spoilt": mediation(spoil=0.25),
        "spoilt_unfiltered": mediation(spoil=0.25, filter=False),
        "unfiltered": mediation(filter=False),
        "without_core": mediation(w_core=0.0),
        "without_context": mediation(w_context=0.0),
        "without_blanks": mediation(blank=0.0),
        "router_unweighted": mediation(error_weight=False),
        "remembered_scores": mediation(refresh=0.25),
        "fusion_sum": mediation(fusion="sum"),
        "fusion_hm": mediation(fusion="hm"),
    },
    "table": ["whole", "without_edits", "identification_of_cimrl", "losses_of_cimrl", "with_cimrl", "spoilt", "spoilt_unfiltered", "unfiltered"],
}
