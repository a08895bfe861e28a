"""Kernels of prototype-based image prompting for weakly supervised segmentation of histopathology
images.

The letters, the same in every module and notebook:

======  ==========================================================================================
B       patches in a batch
C       tissue classes; also the index of ignore in every mask
K       sub-classes per class
S       sub-classes in all, C * K; sub-class k of class c has index K * c + k
N       bank images per sub-class, N_K in the paper
D       width of the encoder's features
H, W    height and width of an image or mask, px
h, w    height and width of a feature or similarity map, positions
L       levels of the backbone's pyramid
======  ==========================================================================================

The kernels stand here, in the order of the data: files, presets, metrics, maps, bank, matching,
losses, classnet, cams, segmentation, training, windows; then results and experiment, one run. Six
wings: data/ (what they read), nets/ (what they call), own/ (from a folder as it is to one that data
reads), study/ (many runs beside the paper), slides/ (a run on pictures of any size) and teach/
(what only notebooks need). Nothing imports upwards: data and nets know no kernel but files, bank
and metrics, kernels know neither own, study, slides nor teach.
"""

import platform

__version__ = "0.1.0"


def report() -> None:
    """Print versions, device and threads on one line, as every notebook does first; no paths.
    Notebook 00."""
    import torch  # here, so that `import protolib` stays instant

    cpu = f"{torch.get_num_threads()} threads"
    device = (
        f"cuda, {torch.cuda.get_device_name()}"
        if torch.cuda.is_available()
        else f"mps, {cpu}"
        if torch.backends.mps.is_available()
        else f"cpu, {cpu}"
    )
    versions = f"protolib {__version__}, Python {platform.python_version()}"
    print(f"{versions}, torch {torch.__version__}; device: {device}")
