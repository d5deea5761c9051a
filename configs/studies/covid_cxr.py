"""Five folds by patient of the X-rays, on frozen published encoders, pooled: the number of examples of a group is small in each.

Command:   python -m cimrl_jax.main study --config configs/studies/covid_cxr.py --data.path /where/metadata/and/images/lie
           with --model.image.pretrained FOLDER and --model.text.pretrained FOLDER where weights/ does not have them
Cost:      52 min for 5 x 25 members on 2 CPU cores, beside other work; of it 1 min 30 s for all features, once
Result:    268 pictures, 5 seeds; worst group (nine pictures: other than COVID-19, taken lying): ERM 23.2 ± 17.5 (11.1 to 38.4), GroupDRO 43.4 ± 18.7,
           JTT 33.1 ± 21.4, CIMRL 31.4 ± 21.7 (15.6 to 47.8), ceiling 37.8 ± 14.7 (26.4 to 48.9). Nothing is told apart: the ceiling is 14.6
           above ERM, seed by seed, -0.4 to 30.6, and CIMRL 8.2, -13.2 to 31.2.
           The lungs' boxes cover 67 % of the picture and hold 31 % of what ERM's prediction is attributed to.
"""

FOLDS = [f"covid_cxr/fold{fold}" for fold in range(5)]

study = {
    "base": {"config": "configs/covid_cxr.py"},
    "runs": {name: {"data": {"fold": fold}} for fold, name in enumerate(FOLDS)},
    "pool": {"covid_cxr": FOLDS},
}
