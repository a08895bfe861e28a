"""Where libraries keep what they compiled, when HOME cannot be written: a container, a cluster, a
class that shares one install."""

import os
import tempfile
from pathlib import Path


def writable() -> None:
    """Give numba and matplotlib a folder of their own where neither can write in HOME.

    numba has no way out of its own: `import umap` fails there. Call it before either is imported.
    """
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    while not cache.exists() and cache != cache.parent:
        cache = cache.parent
    if os.access(cache, os.W_OK):
        return
    user = getattr(os, "getuid", lambda: "")()
    own = Path(tempfile.gettempdir(), f"protolib-{user}")
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or (user != "" and own.stat().st_uid != user):
        own = Path(tempfile.mkdtemp(prefix="protolib-"))  # somebody else's
    for name, folder in (("NUMBA_CACHE_DIR", "numba"), ("MPLCONFIGDIR", "matplotlib")):
        os.environ.setdefault(name, str(own / folder))
