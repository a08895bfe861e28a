"""Where libraries keep what they compiled, when HOME cannot be written: a container, a cluster, a
class that shares one install."""

import os

from protolib import files


def writable() -> None:
    """Give numba and matplotlib a folder of their own where neither can write in HOME.

    numba has no way out of its own: `import umap` fails there. Call it before either is imported.
    """
    if files.home_cache():
        return
    own = files.own_cache()
    for name, folder in (("NUMBA_CACHE_DIR", "numba"), ("MPLCONFIGDIR", "matplotlib")):
        os.environ.setdefault(name, str(own / folder))
