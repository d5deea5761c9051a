"""Waterbirds: the bird is in the picture, the text names only the background, which tells in training; on frozen published encoders.

Weights:   python launch/fetch_weights.py dinov2-small weights/dinov2-small && python launch/fetch_weights.py minilm weights/minilm
Command:   python -m cimrl_jax.main --config configs/waterbirds.py --data.path /where/waterbird_complete95_forest2water2/lies
           with a published setting: ... --config configs/waterbirds.py,configs/papers/waterbirds.py:jtt
Cost:      not measured
Result:    not measured: the pictures are not freely distributable
"""

FROZEN = {"freeze": "all", "features": "disk"}

config = {
    "methods": ("erm", "group_dro", "jtt", "cimrl"),
    "seeds": (0, 1, 2, 3, 4),
    # The species would tell the label: with text species the words alone are enough.
    "data": {"name": "waterbirds", "text": "none", "place_in_text": True},
    "model": {
        "dim": 48,
        "image": {"pretrained": "weights/dinov2-small", "image_size": 224, "pool": 4, **FROZEN},
        "text": {"pretrained": "weights/minilm", **FROZEN},
    },
    "train": {"steps": 800, "batch_size": 64, "learning_rate": 1e-3},
}
