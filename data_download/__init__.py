"""Get, check and lay out the four published data sets: python -m data_download --help."""
