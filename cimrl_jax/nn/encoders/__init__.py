"""One encoder a file: `Options` and `build(options, *, feature, dim, heads, mlp_ratio, dropout, dtype) -> Encoder` (see `base`)."""
