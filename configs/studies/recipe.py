"""Every method on every data set at hand: the one table by which the default recipe stands or falls.

Command:   python -m cimrl_jax.main study --config configs/studies/recipe.py
           Only CIMRL and ERM: --methods erm,cimrl; files that lie elsewhere: --runs.mmsd.data.path /where/they/lie
           Which files and weights a data set needs is said in its config; without them its column is left out and the reason told.
Cost:      12 runs, each 20 programs of together 135 members at 5 seeds; with --methods erm,cimrl 15 members, all 12 in about 90 min on 2 CPU cores
           beside other work
Result:    with --methods erm,cimrl, share of the gap closed: synthetic 101 %, its XOR 95, digits 99, textures 90, easy_vqa 86, digits_av 71, mmsd 34;
           covid_cxr not clear (README.md, docs/RECIPE.md). All methods: not yet measured as one run
"""

ALL = "configs/studies/baselines.py"
"""The methods, and the settings that validation chooses among."""


def folds(count: int) -> dict[str, dict]:
    return {
        f"covid_cxr/fold{fold}": {"config": f"configs/covid_cxr.py,{ALL}", "data": {"path": "data/covid_cxr", "fold": fold}} for fold in range(count)
    }


# Steps as in docs/RECIPE.md.
study = {
    "base": {"seeds": 5},
    "runs": {
        "synthetic": {"config": f"configs/synthetic.py,{ALL}"},
        "synthetic_xor": {"config": f"configs/synthetic.py,{ALL}", "data": {"mode": "xor", "correlation": 0.95}},
        "digits": {"config": f"configs/digits.py,{ALL}", "train": {"steps": 600}},
        "digits_texture": {"config": f"configs/digits.py,{ALL}", "data": {"ground": "texture"}, "train": {"steps": 1000}},
        "easy_vqa": {"config": f"configs/easy_vqa.py,{ALL}", "train": {"steps": 1000}},
        "digits_av": {"config": f"configs/digits_av.py,{ALL}", "data": {"path": "data/digits_av"}},
        "mmsd": {"config": f"configs/mmsd.py,{ALL}", "data": {"path": "data/mmsd"}},
        **folds(5),
    },
    "pool": {"covid_cxr": list(folds(5))},
}
