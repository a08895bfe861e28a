"""Other people's networks and their weights: backbones to train, frozen encoders, where a file
comes from."""
