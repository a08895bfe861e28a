"""Where things are kept that can be made again, also when HOME cannot be written: a container, a
cluster, a class that shares one install."""

import os
import tempfile
from pathlib import Path


def own() -> Path:
    """This user's folder for them: protolib in ~/.cache; where that cannot be written, a private
    one in the temporary folder."""
    if _at_home():
        return _cache() / "protolib"
    user = getattr(os, "getuid", lambda: "")()
    folder = Path(tempfile.gettempdir(), f"protolib-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or (user != "" and folder.stat().st_uid != user):
        folder = Path(tempfile.mkdtemp(prefix="protolib-"))  # somebody else's
    return folder


def writable() -> None:
    """Give numba and matplotlib a folder of their own where neither can write in HOME.

    numba has no way out of its own: `import umap` fails there. Call it before either is imported.
    """
    if _at_home():
        return
    folder = own()
    for name, place in (("NUMBA_CACHE_DIR", "numba"), ("MPLCONFIGDIR", "matplotlib")):
        os.environ.setdefault(name, str(folder / place))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _at_home() -> bool:
    there = next(place for place in (_cache(), *_cache().parents) if place.exists())
    return os.access(there, os.W_OK)
