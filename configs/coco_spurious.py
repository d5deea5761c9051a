"""Cat or dog in photographs with a caption, a coloured patch and a phrase planted in both that agree with the answer, each as often as it is told.

Command:   python -m cimrl_jax.main --config configs/coco_spurious.py --data.path /where/annotations/train2017/and/val2017/lie
           other categories: --data.category "bus,train,truck"; border, tint or texture: --data.plant.image.kind border
Cost:      not yet measured
Result:    not yet measured
"""

config = {
    "methods": ("erm", "group_dro", "cimrl"),
    "seeds": (0, 1, 2),
    "data": {
        "name": "coco_spurious",
        "category": ("cat", "dog"),
        "mask_category": True,
        "size": 64,
        "plant": {
            "separate": True,
            "image": {"kind": "patch", "size": 0.125, "correlation": 0.95},
            "text": {"kind": "phrase", "place": "end", "correlation": 0.9},
        },
    },
    "model": {"dim": 48, "image": {"encoder": "vit", "patch": 8, "depth": 2}, "text": {"encoder": "text_transformer", "depth": 2}},
    "train": {"steps": 1500, "batch_size": 64, "learning_rate": 1e-3},
}
