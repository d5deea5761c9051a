"""Your own table, a row an example: pictures, texts, recordings and numbers in any number, and a label; any encoder by the kind of its column.

Command:   python -m cimrl_jax.main --config configs/table.py --data.path my.csv --data.image-columns photo --data.text-columns caption
           --data.label-column y; add --data.attribute-columns place (what may be a shortcut), --data.split-column split, --data.split-by patient;
           with the path alone it says what the columns seem to hold; all options: --help table
Cost:      2 methods x 3 seeds x 800 steps: a few minutes on 2 CPU cores for pictures of 64 pixels and captions
Result:    yours. Without attribute columns there are no groups: the worst class is reported, not the worst group
"""

config = {
    "methods": ("erm", "cimrl"),
    "seeds": (0, 1, 2),
    "data": {"name": "table"},
    "train": {"steps": 800, "batch_size": 32, "learning_rate": 1e-3},
}
