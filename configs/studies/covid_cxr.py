"""Five folds by patient of the X-rays, on frozen published encoders, pooled: the number of examples of a group is small in each.

Command:   python -m cimrl_jax.main study --config configs/studies/covid_cxr.py --data.path /where/metadata/and/images/lie
           with --model.image.pretrained FOLDER and --model.text.pretrained FOLDER where weights/ does not have them
Cost:      not yet measured
Result:    not yet measured as one run
"""

FOLDS = [f"covid_cxr/fold{fold}" for fold in range(5)]

study = {
    "base": {"config": "configs/covid_cxr.py"},
    "runs": {name: {"data": {"fold": fold}} for fold, name in enumerate(FOLDS)},
    "pool": {"covid_cxr": FOLDS},
}
