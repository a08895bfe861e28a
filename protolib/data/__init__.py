"""From a published folder, or a seed, to arrays: what a data set is, its patches, regions and the
phantom."""
