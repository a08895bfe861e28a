"""Published weights: where a file is found, how it is read, and loading that is whole or
refused."""

import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from protolib.files import weights_folder

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".zip")
# a repository has one or both; the first holds no code at all
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SECONDS = 5  # without an answer the network counts as down


@dataclass(frozen=True)
class Published:
    """Who publishes the weights of one name: licence as stated, and a hub repository, an address or
    a page."""

    licence: str
    repo: str = ""  # of the Hugging Face hub
    gated: bool = False  # the hub asks for a token whose owner was granted access
    url: str = ""  # of the file itself, where it is on no hub
    page: str = ""  # where a person finds the file
    file: str = ""  # its name there, without suffix
    files: tuple[str, ...] = HUB_FILES  # its name on the hub, the first that is there

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What its file may end in, in the folder where people bring files."""
        return SUFFIXES if self.files == HUB_FILES else (Path(self.files[0]).suffix,)


PUBLISHED = {
    "resnet18": Published("BSD-3-Clause (torchvision)", repo="timm/resnet18.tv_in1k"),
    "resnet50": Published("BSD-3-Clause (torchvision)", repo="timm/resnet50.tv_in1k"),
    "resnet38d": Published(
        "none stated",
        page="https://github.com/jiwoon-ahn/psa (there for MXNet: convert it)",
        file="ilsvrc-cls_rna-a1_cls1000_ep-0001",
    ),
    "transunet": Published("Apache-2.0", repo="timm/vit_base_r50_s16_224.orig_in21k"),
    "mit_b1": Published("other: NVIDIA Source Code License for SegFormer", repo="nvidia/mit-b1"),
    "swin": Published("Apache-2.0", repo="microsoft/swin-tiny-patch4-window7-224"),
    "medclip": Published(
        "MIT for the code; none stated for the weights",
        url="https://storage.googleapis.com/pytrial/medclip-vit-pretrained.zip",
        page="https://github.com/RyanWangZf/MedCLIP",
        file="medclip-vit-pretrained",
    ),
    "clip": Published(
        "MIT for the code; none stated for the weights", repo="openai/clip-vit-base-patch32"
    ),
    # words of CLIP and PLIP, not weights
    "clip_tokenizer": Published(
        "MIT", repo="openai/clip-vit-base-patch32", files=("tokenizer.json",)
    ),
    "plip": Published("none stated", repo="vinid/plip"),
    "dinov2": Published("Apache-2.0", repo="facebook/dinov2-small"),
    "uni": Published("CC-BY-NC-ND-4.0", repo="MahmoodLab/UNI", gated=True),
    "conch": Published("CC-BY-NC-ND-4.0", repo="MahmoodLab/CONCH", gated=True),
}


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this disk, and whose it is."""

    path: Path
    source: str
    revision: str  # commit of the hub's repository; empty where nobody keeps one
    licence: str


@dataclass(frozen=True)
class WeightsInfo:
    """Where a network's weights come from: file, sha256 (hex), licence, what was loaded and what
    not."""

    source: str
    revision: str
    sha256: str
    licence: str
    loaded: int  # tensors
    missing: tuple[str, ...] = ()  # tensors that no file holds, by design; a seed draws them
    ignored: tuple[str, ...] = ()  # patterns of keys of the file that the network has no use for


def find(name: str) -> WeightsFile:
    """The file of the weights of that name: in `files.weights_folder()`, else in the hub's cache,
    else from the hub or their address.

    In the folder it is called by that name or as published, with any of SUFFIXES. The network is
    asked only if HF_HUB_OFFLINE is not set, and no answer within SECONDS counts as none. Raises
    FileNotFoundError that names the file to bring, its repository and where to put it,
    PermissionError for a gated repository without access.
    """
    if name not in PUBLISHED:
        raise FileNotFoundError(
            f"no weights are published for '{name}'; known: {', '.join(PUBLISHED)}"
        )
    known = PUBLISHED[name]
    if here := _on_disk(name, known):
        return here
    if known.repo:
        return _from_hub(name, known)
    if known.url:
        return _from_address(name, known)
    raise _absent(name, "it is on no hub")


def identity(name: str) -> str:
    """What identifies the weights of that name: the SHA-256 (hex) of the file that `find` gives, or
    "random" where none can be had.

    Quick when asked again: the disk is looked at each time, so that a file that arrives or is
    replaced is seen, but the network is asked once a process. Raises ValueError if a file of the
    hub's cache has not the hub's hash.
    """
    if name not in PUBLISHED:
        return "random"
    file = _on_disk(name, PUBLISHED[name])
    if file is None and name not in _refused:
        try:
            file = find(name)
        except (FileNotFoundError, PermissionError):
            if not _offline():  # that answer costs nothing and may change
                _refused.add(name)
    return sha256(file.path) if file else "random"


_refused: set[str] = set()  # names that the network could not give to `identity` in this process


def _offline() -> bool:
    from huggingface_hub import is_offline_mode  # here, for the embedded weights need no hub

    return is_offline_mode()


def _on_disk(name: str, known: Published) -> WeightsFile | None:
    """The file in the folder, else in the hub's cache; no network."""
    for stem in filter(None, (name, known.file)):
        for suffix in known.suffixes:
            path = weights_folder() / f"{stem}{suffix}"
            if path.is_file():
                return WeightsFile(path, f"{path.name}, brought by hand", "", known.licence)
    if known.repo:
        from huggingface_hub import try_to_load_from_cache

        for file in known.files:
            if isinstance(cached := try_to_load_from_cache(known.repo, file), str):
                return _hub_file(Path(cached), known)
    return None


def _absent(name: str, why: str) -> FileNotFoundError:
    known = PUBLISHED[name]
    where = known.page or f"https://huggingface.co/{known.repo}"
    what = f"'{known.file}'" if known.file else " or ".join(known.files)
    ends = ".safetensors, .bin, .pth or .zip" if known.suffixes == SUFFIXES else known.suffixes[0]
    return FileNotFoundError(
        f"the weights of '{name}' are not on this machine and could not be had ({why}): "
        f"bring {what} of {where} and put it into {weights_folder()} "
        f"as {name}{ends}"
    )


def _from_hub(name: str, known: Published) -> WeightsFile:
    """From the hub; resumed, with a bar, by huggingface_hub."""
    import huggingface_hub as hub
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if hub.is_offline_mode():
        raise _absent(name, "HF_HUB_OFFLINE is set")
    if known.gated and not hub.get_token():
        raise _no_access(name, known, "HF_TOKEN is not set")
    try:  # hf_hub_download itself tries for half a minute before it gives up
        hub.get_session().head(hub.constants.ENDPOINT, timeout=SECONDS)
        for file in known.files:
            try:
                return _hub_file(Path(hub.hf_hub_download(known.repo, file)), known)
            except RemoteEntryNotFoundError:
                continue
    except GatedRepoError as error:
        raise _no_access(name, known, "the hub refused the token") from error
    except RepositoryNotFoundError as error:
        raise _absent(name, f"the hub shows no {known.repo}") from error
    except Exception as error:  # of httpx, of the hub, of the disk: for the reader all the same
        raise _absent(name, f"{type(error).__name__}: {error}".splitlines()[0]) from error
    raise _absent(name, f"{known.repo} has neither {' nor '.join(known.files)}")


def _hub_file(path: Path, known: Published) -> WeightsFile:
    # .../snapshots/COMMIT/file
    return WeightsFile(path, f"{known.repo} {path.name}", path.parent.name, known.licence)


def _no_access(name: str, known: Published, why: str) -> PermissionError:
    return PermissionError(
        f"the weights of '{name}' are gated ({why}): ask for access at "
        f"https://huggingface.co/{known.repo}, then set HF_TOKEN to a token of yours; "
        f"or put the file into {weights_folder()} as {name}.bin"
    )


def _from_address(name: str, known: Published) -> WeightsFile:
    """From its own address into the folder, whole or not at all; resumed, with a bar."""
    if _offline():
        raise _absent(name, "HF_HUB_OFFLINE is set")
    from data_download import transport  # here, for few ask the network
    from data_download.part import Remote
    from data_download.registry import Refused

    path = weights_folder() / Path(known.url).name
    patience = transport.Patience(connect=SECONDS, waits=(0.5, 1.0))
    with transport.session() as client, tqdm(unit="B", unit_scale=True, leave=False) as bar:

        def moved(have: int, total: int | None) -> None:
            bar.total = total
            bar.update(have - bar.n)

        bar.set_description(path.name)
        try:
            if not transport.someone_answers([known.url], client, SECONDS):
                raise Refused("no network")
            transport.get(Remote(path.name, known.url), path, client, patience, moved)
        except Refused as error:
            raise _absent(name, str(error)) from error
    return WeightsFile(path, known.url, "", known.licence)


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors, a torch file (weights only), or a zip that holds
    pytorch_model.bin.

    Raises ValueError that names the file if it is cut off, damaged, or holds anything but named
    tensors: code in a pickle is never run.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                inner = next(
                    (n for n in archive.namelist() if Path(n).name == "pytorch_model.bin"), None
                )
                if inner is None:
                    raise ValueError("it holds no pytorch_model.bin")
                state = torch.load(
                    io.BytesIO(archive.read(inner)), map_location="cpu", weights_only=True
                )
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # of zip, pickle, torch and safetensors, each with several kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path.name} cannot be read as weights ({reason}): delete it and bring it again"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(
            f"{path.name} holds no plain table of tensors by name: save net.state_dict() of it"
        )
    return state


def put(
    net: nn.Module,
    state: dict[str, Tensor],
    file: WeightsFile,
    ignore: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
) -> WeightsInfo:
    """Load tensors into a network, all of them or none.

    ignore: patterns, matched from a key's first letter, of keys that the network has no use for.
    rename: pairs (pattern, replacement) applied in their order to a key until the network knows it.
    The counters num_batches_tracked may be absent. Raises ValueError that names the file and the
    first keys that are missing, unknown, of another shape or not finite, or if a file of the hub's
    cache has not the hub's hash.
    """
    net_state = net.state_dict()
    given, ignored = {}, set()
    for key, value in state.items():
        pattern = next((p for p in ignore if re.match(p, key)), None)
        if pattern is None:
            given[_renamed(key, net_state, rename)] = value
        else:
            ignored.add(pattern)
    faults = {
        "missing": [
            k for k in net_state if k not in given and not k.endswith("num_batches_tracked")
        ],
        "unknown": [k for k in given if k not in net_state],
        "of another shape": [
            k for k in given if k in net_state and given[k].shape != net_state[k].shape
        ],
        "not finite": [
            k
            for k, value in given.items()
            if value.is_floating_point() and not value.isfinite().all()
        ],
    }
    found = [
        f"{len(keys)} {fault} (first: {', '.join(keys[:3])})"
        for fault, keys in faults.items()
        if keys
    ]
    if found:
        raise ValueError(
            f"{file.path.name} does not fit {type(net).__name__}, "
            f"which has {len(net_state)} tensors: {'; '.join(found)}. "
            "Nothing was loaded; bring the file that is published for it"
        )
    found_sha256 = sha256(file.path)
    net.load_state_dict(given, strict=False)
    return WeightsInfo(
        file.source,
        file.revision,
        found_sha256,
        file.licence,
        len(given),
        ignored=tuple(sorted(ignored)),
    )


def sha256(path: Path) -> str:
    """The hash (hex) of a file of weights, read again only when its size or its time changes.

    The hub's cache calls a large file by its hash: raises ValueError if that is another one.
    """
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@cache
def _sha256(path: Path, *version: int) -> str:
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    blob = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob) and blob != found:
        raise ValueError(
            f"{path} has sha256 {found}, the hub's is {blob}: "
            f"delete {path.resolve()} and load it again"
        )
    return found


def _renamed(key: str, known: dict[str, Tensor], rename: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rename:
        if key in known:
            break
        key = re.sub(pattern, replacement, key)
    return key
