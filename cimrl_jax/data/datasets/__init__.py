"""One data set a file: `Options` and `build(options, path=None) -> Dataset`. The file's name is the data set's name."""
