"""A data set of your own: from a folder of images as it is to one that data reads, with its
dataset.toml."""
