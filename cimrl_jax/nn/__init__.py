"""Neural networks: dense layers, transformer blocks, encoders (one file each), fusion, the causal layers, and the model that joins them."""
