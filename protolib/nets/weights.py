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
from protolib.nets.published import (
    PUBLISHED,
    SUFFIXES,
    Published,
    WeightsFile,
    hub_file,
    on_disk,
    published,
)

SECONDS = 5  # without an answer the network counts as down


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

    In the folder it is called by that name or as published, with any of SUFFIXES; a repository may
    also stand there whole, as OWNER/NAME/. The network is
    asked only if HF_HUB_OFFLINE is not set, and no answer within SECONDS counts as none. Raises
    FileNotFoundError that names the file to bring, its repository and where to put it,
    PermissionError for a gated repository without access.
    """
    known = published(name)
    if known is None:
        raise FileNotFoundError(
            f"no weights are published for '{name}'; known: {', '.join(PUBLISHED)}"
        )
    if here := on_disk(name, known):
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
    known = published(name)
    if known is None:
        return "random"
    file = on_disk(name, known)
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


def beside(file: WeightsFile, name: str, part: str) -> Path | None:
    """Another file of the repository that a file of weights came from, such as its config.json, at
    the same revision; None where the repository has none, or it cannot be had."""
    path, known = file.path.parent / part, published(name)
    if path.is_file():
        return path
    if not file.revision or _offline():
        return None
    import huggingface_hub as hub

    try:
        return Path(hub.hf_hub_download(known.repo, part, revision=file.revision))
    except Exception:  # of httpx, of the hub, of the disk: it is not here all the same
        return None


def code_beside(file: WeightsFile, name: str) -> None:
    """Bring the Python files of a repository beside its weights; they run only where they are
    trusted, see published.TRUST."""
    if file.revision and not _offline():
        import huggingface_hub as hub

        hub.snapshot_download(published(name).repo, revision=file.revision, allow_patterns="*.py")


def _absent(name: str, why: str) -> FileNotFoundError:
    known = published(name)
    where = known.page or f"https://huggingface.co/{known.repo}"
    what = f"'{known.file}'" if known.file else " or ".join(known.files)
    return FileNotFoundError(
        f"the weights of '{name}' are not on this machine and could not be had ({why}): "
        f"bring {what} of {where} and put it into {weights_folder()} as {_place(name, known)}"
    )


def _place(name: str, known: Published) -> str:
    """What a file that a person brings is called: a repository comes whole, with its config."""
    if ":" in name:
        return f"{known.repo}/, with its config.json"
    ends = ".safetensors, .bin, .pth or .zip" if known.suffixes == SUFFIXES else known.suffixes[0]
    return f"{name}{ends}"


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
                return hub_file(Path(hub.hf_hub_download(known.repo, file)), known)
            except RemoteEntryNotFoundError:
                continue
    except GatedRepoError as error:
        raise _no_access(name, known, "the hub refused the token") from error
    except RepositoryNotFoundError as error:
        raise _absent(name, f"the hub shows no {known.repo}") from error
    except Exception as error:  # of httpx, of the hub, of the disk: for the reader all the same
        raise _absent(name, f"{type(error).__name__}: {error}".splitlines()[0]) from error
    raise _absent(name, f"{known.repo} has neither {' nor '.join(known.files)}")


def _no_access(name: str, known: Published, why: str) -> PermissionError:
    return PermissionError(
        f"the weights of '{name}' are gated ({why}): ask for access at "
        f"https://huggingface.co/{known.repo}, then set HF_TOKEN to a token of yours; "
        f"or put the file into {weights_folder()} as {_place(name, known)}"
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
