"""CelebA: blond hair, which in training nearly no man has, from the face and, where there is one, a caption; on frozen published encoders.

Weights:   python launch/fetch_weights.py dinov2-small weights/dinov2-small && python launch/fetch_weights.py minilm weights/minilm
Command:   python -m cimrl_jax.main --config configs/celeba.py --data.path /where/list_attr_celeba.txt/and/img_align_celeba/lie
           with a published setting, which counts on all pictures: ... --config configs/celeba.py,configs/papers/celeba.py:jtt --data.rows all
Cost:      not measured
Result:    not measured: the data set is not freely distributable
"""

FROZEN = {"freeze": "all", "features": "disk"}

config = {
    "methods": ("erm", "group_dro", "jtt", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    # Only pictures with captions, whose words for the hair are taken out, or the words alone would be enough.
    "data": {"name": "celeba", "text": "captions", "rows": "captioned", "mask_target": True},
    "model": {
        "dim": 48,
        "image": {"pretrained": "weights/dinov2-small", "image_size": 224, "pool": 4, **FROZEN},
        "text": {"pretrained": "weights/minilm", **FROZEN},
    },
    "train": {"steps": 1600, "batch_size": 64, "learning_rate": 1e-3},
}
