"""Who publishes which weights, under which licence, and where they are on this disk:
published.toml, read without torch."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from protolib.files import weights_folder

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".zip")
# a repository has one or both; the first holds no code at all
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# set by `--trust-remote-code`, for a command and what it starts: code of a repository may run
TRUST = "PROTOLIB_TRUST_REMOTE_CODE"
# who may run it in a class: everyone, after the licence was read or asked about, or each with an
# account of their own that was granted access
CLASSES = ("yes", "ask", "each")
REPO = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
LOADERS = {  # how a network is built; True: here
    "own": True,
    "timm": True,
    "hf": True,
    "package": True,  # of its authors, where it is installed
    "open_clip": False,
    "call": False,  # its card builds it by a call of its own
}


@dataclass(frozen=True)
class Published:
    """Who publishes the weights of one name: licence as stated, and a hub repository, an address or
    a page; and what an encoder is."""

    licence: str
    repo: str = ""  # of the Hugging Face hub
    gated: bool = False  # the hub asks for a token whose owner was granted access
    url: str = ""  # of the file itself, where it is on no hub
    page: str = ""  # where a person finds the file
    file: str = ""  # its name there, without suffix
    files: tuple[str, ...] = HUB_FILES  # its name on the hub, the first that is there
    # of encoders
    loader: str = "own"
    what: str = ""
    classroom: str = ""  # one of CLASSES
    millions: int = 0  # of parameters
    D: int = 0  # width of its features

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What its file may end in, in the folder where people bring files."""
        return SUFFIXES if self.files == HUB_FILES else (Path(self.files[0]).suffix,)


def _read() -> dict[str, Published]:
    tables = tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))
    made = {}
    for name, table in tables.items():
        files = tuple(table.pop("files", HUB_FILES))
        made[name] = Published(classroom=table.pop("class", ""), files=files, **table)
    return made


PUBLISHED = _read()


def published(name: str) -> Published | None:
    """What is known of a name: its table, or of any other "timm:..." or "hf:..." its repository;
    None for a name that nobody publishes here.

    "timm:OWNER/NAME" and "hf:OWNER/NAME" are repositories of the hub; "timm:NAME.TAG" is a model of
    timm with the weights of that tag.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    loader, _, repo = name.partition(":")
    if loader not in ("timm", "hf") or not REPO.fullmatch(repo) or ".." in repo:
        return None
    if "/" not in repo and (loader == "hf" or "." not in repo):
        return None
    repo = repo if "/" in repo else f"timm/{repo}"
    return Published("as its card says, not read here", repo, loader=loader)


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this disk, and whose it is."""

    path: Path
    source: str
    revision: str  # commit of the hub's repository; empty where nobody keeps one
    licence: str


def on_disk(name: str, known: Published) -> WeightsFile | None:
    """The file in the folder for weights, else in the hub's cache; no network."""
    for stem in filter(None, (name, known.file)):
        for suffix in known.suffixes:
            path = weights_folder() / f"{stem}{suffix}"
            if path.is_file():
                return WeightsFile(path, f"{path.name}, brought by hand", "", known.licence)
    if known.repo:
        from huggingface_hub import try_to_load_from_cache

        for file in known.files:
            if (path := weights_folder() / known.repo / file).is_file():
                return WeightsFile(path, f"{known.repo} {file}, brought by hand", "", known.licence)
            if isinstance(cached := try_to_load_from_cache(known.repo, file), str):
                return hub_file(Path(cached), known)
    return None


def hub_file(path: Path, known: Published) -> WeightsFile:
    """A file of the hub's cache: .../snapshots/COMMIT/file."""
    return WeightsFile(path, f"{known.repo} {path.name}", path.parent.name, known.licence)
