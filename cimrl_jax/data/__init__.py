"""Sources of examples, the order in which they are read, tokenisation, and perturbed views on the device."""
