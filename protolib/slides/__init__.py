"""Pictures of any size: read window by window, predicted by a trained run, and given out as masks,
outlines and areas."""
