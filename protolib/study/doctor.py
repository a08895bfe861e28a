"""What this machine has: versions, processors, memory, disk, and which encoders are here, can be
had or are gated. Asks neither the network nor torch."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from protolib import __version__, files
from protolib.nets.published import LOADERS, PUBLISHED, TRUST, on_disk

PACKAGES = ("torch", "timm", "transformers", "huggingface_hub", "numpy", "shapely", "tifffile")
EXTRAS = {"slides": "openslide-python", "cluster": "distributed"}
# who may run it in a class, see published.CLASSES
CLASSROOM = {
    "yes": "yes",
    "ask": "read its terms first",
    "each": "each with an account of their own that was granted access",
}
GB = 1e9


class Row(NamedTuple):
    """One encoder: its name, whether it can run now or why not, and what it is."""

    name: str
    state: str  # "here", or what it waits for
    what: str
    size: str
    licence: str
    classroom: str


def report() -> str:
    """All of it as text, in a second or two."""
    lines = [*machine(), "", "encoders, one by -p encoder=NAME:"]
    for row in encoders():
        lines += [f"  {row.name}: {row.state}", f"      {row.what}; {row.size}"]
        lines.append(f"      licence: {row.licence}; in a class: {row.classroom}")
    lines.append(
        "Any other: timm:NAME.TAG, timm:OWNER/NAME or hf:OWNER/NAME.\n"
        "Licences are as stated when this was written: the card of an encoder counts."
    )
    return "\n".join(lines) + "\n"


def licences() -> str:
    """The licence of every package that is installed and of all weights that are known by name, a
    line each, as their authors state it."""
    packages = sorted(metadata.distributions(), key=lambda of: of.name.lower())
    lines = [f"  {of.name} {of.version}: {_licence(of.metadata)}" for of in packages]
    weights = {"lite0": "Apache-2.0"} | {name: of.licence for name, of in PUBLISHED.items()}
    lines += ["", "weights:", *(f"  {name}: {said}" for name, said in weights.items())]
    return "\n".join(["packages:", *lines]) + "\n"


def _licence(said: metadata.PackageMetadata) -> str:
    """What a package says of its licence: an expression, a text of which the first line is shown,
    or a classifier, whichever it has."""
    texts = [*said.get_all("License-Expression", []), *said.get_all("License", [])]
    stated = [text.strip().splitlines()[0] for text in texts if text.strip()]
    kinds = [kind for kind in said.get_all("Classifier", []) if kind.startswith("License ::")]
    known = [kind.rpartition(" :: ")[2] for kind in kinds]
    return files.printed((stated + known + ["none stated"])[0])[:80]


def machine() -> list[str]:
    """Versions, processors, memory, disk, hub: a line each."""
    memory, folder = psutil.virtual_memory(), files.weights_folder()
    versions = ", ".join(f"{name} {_version(name) or 'missing'}" for name in PACKAGES)
    extras = ", ".join(f"{name} {_version(of) or 'not installed'}" for name, of in EXTRAS.items())
    threads = os.environ.get("OMP_NUM_THREADS")
    return [
        f"protolib {__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}",
        f"packages: {versions}",
        f"extras: {extras}",
        f"processors: {cores()} to use of {os.cpu_count()}"
        + (f", OMP_NUM_THREADS = {threads}" if threads else ""),
        f"GPU: {gpu()}",
        f"memory: {memory.available / GB:.1f} of {memory.total / GB:.1f} GB free",
        f"disk: {_free(Path.cwd())} GB free here, {_free(folder)} GB where weights go ({folder})",
        f"hub: {hub()}",
    ]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu() -> str:
    """The graphics processors, as their driver tells them: torch takes seconds to say."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple's (device mps), which shares the memory"
    if not shutil.which("nvidia-smi"):
        return "none that nvidia-smi shows; quick, smoke and lean need none"
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi fails ({type(error).__name__}): is the driver loaded?"
    return "; ".join(said.strip().splitlines()) or "none"


def hub() -> str:
    """Whether weights could be fetched, as far as this can be told without asking."""
    from huggingface_hub import constants, get_token

    state = "not asked, for HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "not asked"
    token = "a token is set" if get_token() else "no token is set, which gated weights want"
    trust = "; code of repositories may run" if os.environ.get(TRUST) else ""
    return f"{state}; {token}{trust}"


def encoders() -> list[Row]:
    """One row for each known encoder, those first that can run now."""
    rows = [
        Row("lite0", "here", "EfficientNet-Lite0, ImageNet", _size(3, 496), "Apache-2.0", "yes")
    ]
    for name, known in PUBLISHED.items():
        if known.D:  # no backbone, nor a part of another
            size, classroom = _size(known.millions, known.D), CLASSROOM[known.classroom]
            rows.append(Row(name, _state(name), known.what, size, known.licence, classroom))
    return sorted(rows, key=lambda row: row.state != "here")


def _size(millions: int, D: int) -> str:
    return f"{millions:,} million parameters, D = {D}"


def _state(name: str) -> str:
    """Whether an encoder can run now: "here", or what it waits for."""
    known = PUBLISHED[name]
    if not LOADERS[known.loader]:
        return f"not built here ({known.loader})"
    if known.loader == "package" and not _version(name):
        return "wants the package of its authors"
    if on_disk(name, known):
        return "here"
    return "gated: ask for access" if known.gated else "can be had"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _free(folder: Path) -> str:
    """Space on the disk of a folder, which need not be there yet, GB."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return f"{shutil.disk_usage(there).free / GB:.1f}"
