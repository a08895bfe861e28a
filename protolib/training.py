"""The training loop of both stages: accelerate for every device, several processes, resume, a guard
against a non-finite loss, history."""

import ctypes
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from protolib import processes
from protolib.data.phantom import STAINS
from protolib.files import whole, write_text
from protolib.maps import pose
from protolib.presets import Preset

Loss = Callable[[nn.Module, dict], dict[str, Tensor]]
# of accelerate; tf32 rounds the factors of float32 products to ten bits, on a GPU alone
PRECISION = {"float32": "no", "tf32": "no", "bfloat16": "bf16", "float16": "fp16"}
# An epoch on a whole data set takes hours: within it a state is kept, but not more often than every
# PAUSE seconds, for it is as large as the checkpoint. The clock is looked at every LOOK steps:
# several processes must agree on it. An epoch of less than PAUSE seconds never writes one.
PAUSE, LOOK = 300.0, 16
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of malloc.h, bytes


class Place(NamedTuple):
    """Where a training is kept, which one it is, and what its draws come from."""

    folder: Path
    key: str  # a checkpoint of another key is not continued
    seed: int


def seed_of(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose of one run, in 0..2**31-1: no draw depends on what was drawn before
    it. Notebook 04.

    purpose: words and numbers, such as "epoch", 3.
    """
    words = "/".join(map(str, (seed, *purpose)))
    return int(hashlib.sha256(words.encode()).hexdigest()[:8], 16) >> 1


def dihedral(images: Tensor, which: Tensor) -> Tensor:
    """Each image turned and mirrored into one of its eight poses: tissue has no up or down.
    Notebook 04.

    images: (B, ..., H, W), H = W; which: (B,) int64 in 0..7, see maps.pose, on the CPU: a GPU
    would wait to be asked which poses there are.
    """
    out = torch.empty_like(images)  # poses in place: the batch keeps its order
    for k in range(8):
        rows = (which == k).nonzero()[:, 0].to(images.device, non_blocking=True)
        if len(rows):
            out[rows] = pose(images[rows], k)
    return out


def augment(batch: dict, generator: torch.Generator) -> dict:
    """A training batch in random poses, image as float in [0, 1], mask (if any) turned with it."""
    images = batch["image"]
    which = torch.randint(8, (len(images),), generator=generator)  # (B,)
    turned = {k: dihedral(batch[k], which) for k in ("image", "mask") if k in batch}
    return batch | turned | {"image": turned["image"].float() / 255}


def restained(images: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Each patch as another laboratory might have stained it: hematoxylin and eosin stray, what is
    neither stays.

    images: (B, 3, H, W) float in [0, 1], RGB; so is what is returned. jitter: of each patch and
    stain the amount becomes a times itself plus b, in units of optical density (decadic), a drawn
    evenly from 1 - jitter to 1 + jitter and b from -jitter to jitter. Tellez et al., IEEE TMI
    37(9), 2018, with .05; amounts by the deconvolution of Ruifrok and Johnston, Anal Quant Cytol
    Histol 23, 2001, whose two vectors stand in phantom.STAINS, and their cross product.
    """
    draws = (2 * torch.rand(2, len(images), 2, generator=generator) - 1) * jitter
    scale, shift = draws.to(images.device)  # (B, 2) each: of hematoxylin and of eosin
    stains = F.normalize(images.new_tensor(STAINS), dim=1)  # (2, 3)
    rest = F.normalize(torch.linalg.cross(stains[0], stains[1]), dim=0)
    # (3, 2): the amounts of both in a pixel's density
    unmix = torch.linalg.inv(torch.stack((*stains, rest)))[:, :2]
    # no density is changed but by scale * amounts + shift, along the two stains
    density = -images.clamp(min=1 / 255).log10()  # (B, 3, H, W)
    amounts = torch.einsum("bchw,cs->bshw", density, unmix)
    more = amounts * scale[:, :, None, None] + shift[:, :, None, None]  # (B, 2, H, W)
    return (10 ** -(density + torch.einsum("bshw,sc->bchw", more, stains))).clamp(0, 1)


def poly_lr(step: int, steps: int, p: Preset) -> float:
    """Linear warm-up from a share of p.lr, then polynomial decay p.lr * (1 - (step - warmup) /
    steps)^power.

    step: from 0; past the last of `steps` the rate stays. The decay is that of the released code:
    with warm-up it does not come to 0, for it is divided by all steps. Utils/optimizer.py.
    """
    warmup = round(p.warmup * steps / p.epochs)
    if step < warmup:
        return p.lr * (1 - (1 - step / warmup) * (1 - p.warmup_ratio))
    return p.lr * (1 - (min(step, steps - 1) - warmup) / steps) ** p.lr_power


def set_up(device: str, p: Preset) -> None:
    """What a kind of device needs before networks run on it.

    device: "cpu", "cuda" or "mps". The number of pairs in a matching loss differs from step to
    step, and cuDNN's attention plans anew for each: on an H100 a step of 64 patches took .93 s so,
    and .18 s where its plan was there. On a CPU freed memory is kept: see `keep_freed_memory`.
    """
    if device == "cpu":
        keep_freed_memory()
    if device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("high" if p.precision == "tf32" else "highest")


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, where it would return large blocks to the
    system and ask for them again: a step of stage 2 in quick took 1.77 s of CPU so, .38 of them in
    the system, and takes 1.20; the peak is 3 % higher."""
    if sys.platform == "linux":  # another libc may have no such call
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def optimizer_of(net: nn.Module, p: Preset) -> torch.optim.AdamW:
    """AdamW over what is trained; on a GPU in one kernel, for its 160 tensors are small."""
    trained = [w for w in net.parameters() if w.requires_grad]  # prototypes are fixed
    fused = trained[0].device.type == "cuda"
    return torch.optim.AdamW(trained, lr=p.lr, weight_decay=p.weight_decay, fused=fused)


def save(place: Place, net: nn.Module, optimizer, history: list[dict]) -> None:
    """Write checkpoint.pt and history.csv, each whole or not at all."""
    with whole(place.folder / "checkpoint.pt") as file:
        torch.save({"key": place.key, **_learned(net, optimizer), "history": history}, file)
    write_text(place.folder / "history.csv", pd.DataFrame(history).to_csv(index=False))
    (place.folder / "epoch.pt").unlink(missing_ok=True)  # of this epoch, which is whole now


def resume(place: Place, net: nn.Module, optimizer=None) -> list[dict]:
    """Load checkpoint.pt of the same key into net (and optimizer); returns its history, empty if
    there is none. Raises ValueError for a file that is damaged."""
    state = _read(place.folder / "checkpoint.pt")
    if state.get("key") != place.key:  # another run's weights: begin anew rather than mix the two
        return []
    _load(state, net, optimizer)
    return state["history"]


def finished(place: Place, p: Preset) -> bool:
    """Whether a training of this key has all its epochs. Raises ValueError for a damaged file."""
    state = _read(place.folder / "checkpoint.pt", mmap=True)
    return state.get("key") == place.key and len(state["history"]) >= p.epochs


def _learned(net: nn.Module, optimizer) -> dict:
    """What steps change, but for the state of random draws."""
    scaler = optimizer.scaler  # of float16 alone
    return {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler and scaler.state_dict(),
    }


def _load(state: dict, net: nn.Module, optimizer=None) -> None:
    """Bring back what `_learned` gave."""
    net.load_state_dict(state["net"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
        if optimizer.scaler:
            optimizer.scaler.load_state_dict(state["scaler"])


def _read(file: Path, mmap: bool = False) -> dict:
    """A state on disk, on the CPU; {} where there is none."""
    if not file.exists():
        return {}
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{file} is cut or damaged ({said or 'it is empty'}): delete it, and what was trained "
            "into it is trained again"
        ) from error


class Part(NamedTuple):
    """How far an epoch is in one process: steps, seconds, the sum of each loss, and the states that
    the draws of the next step come from."""

    steps: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = {}
    draws: Sequence[Tensor] = ()


def keep(place: Place, net: nn.Module, optimizer, epoch: int, part: Part) -> None:
    """Write epoch.pt, whole or not at all: the state within an epoch, from which it goes on as if
    it had not been stopped."""
    each = processes.gathered(part._asdict())
    if processes.rank() == 0:
        state = {"whose": _whose(place, net, epoch), "each": each, **_learned(net, optimizer)}
        with whole(place.folder / "epoch.pt") as file:
            torch.save(state, file)
    processes.wait()  # none is in the next step before it is written


def kept(place: Place, net: nn.Module, optimizer, epoch: int) -> Part:
    """Load epoch.pt of the same key, epoch and kind of device into net and optimizer; returns what
    this process had done, nothing where other processes wrote it. Raises ValueError for a damaged
    file."""
    state = _read(place.folder / "epoch.pt")
    # each process has draws of its own
    if state.get("whose") != _whose(place, net, epoch) or len(state["each"]) != processes.count():
        return Part()
    _load(state, net, optimizer)
    return Part(**state["each"][processes.rank()])


def _whose(place: Place, net: nn.Module, epoch: int) -> dict:
    """What the state within an epoch belongs to: a kind of device has draws of its own."""
    return {"key": place.key, "epoch": epoch, "device": next(net.parameters()).device.type}


def _sources(device: str, *generators: torch.Generator) -> list[tuple[Callable, Callable]]:
    """How to ask for the state of everything that draws, and how to set it."""
    pairs: list[tuple[Callable, Callable]] = [(torch.get_rng_state, torch.set_rng_state)]
    pairs += [(g.get_state, g.set_state) for g in generators]
    if device != "cpu":  # "cuda" or "mps", which has draws of its own
        kind = getattr(torch, device)
        pairs.append((kind.get_rng_state, kind.set_rng_state))
    return pairs


def guard(loss: Tensor, batch: dict, patches, folder: Path) -> None:
    """Stop at a loss that is not finite and keep its batch in non_finite_batch.pt; raises
    FloatingPointError."""
    if torch.isfinite(loss):
        return
    with whole(folder / "non_finite_batch.pt") as file:
        torch.save({k: v.cpu() for k, v in batch.items()}, file)
    names = ", ".join(patches.ids[i] for i in batch["index"].tolist()[:4])
    raise FloatingPointError(
        f"the loss is {loss.item()} on the batch that begins with {names}; it is kept in "
        "non_finite_batch.pt; look for empty or damaged patches in it, or lower the learning rate"
    )


def fit(
    net: nn.Module,
    patches,
    loss: Loss,
    p: Preset,
    place: Place,
    watch: Callable[[nn.Module], dict[str, float | str]] | None = None,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Train `net` in place, on its own device; returns the history, one row per epoch with the mean
    of each loss. Notebook 04.

    loss(net, batch) -> named scalar losses, of which "loss" is minimised; batch["step"] counts from
    0. p: epochs, batch, lr and what belongs to it, weight_decay, precision, stain_jitter. place:
    receives history.csv and checkpoint.pt after every epoch, and epoch.pt within a long one; what
    it holds of the same key is continued, to the same last digit. watch(net): more numbers for the
    row of an epoch, such as IoU on val; they steer nothing and their time is not counted. In
    several processes each has its share of p.batch, and the first one writes. Raises
    FloatingPointError at the first loss that is not finite and leaves the batch in
    non_finite_batch.pt, and ValueError for a damaged checkpoint.
    """
    device = next(net.parameters()).device.type
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=PRECISION[p.precision])
    optimizer = optimizer_of(net, p)
    # a GPU would wait for one process that decodes; on a CPU others would take its cores
    feeders = 4 if device == "cuda" else 0
    last = len(patches) > p.batch  # drop a batch that is not full, unless it is the only one
    loader = DataLoader(
        patches,
        p.batch,
        shuffle=True,
        num_workers=feeders,
        pin_memory=device == "cuda",
        drop_last=last,
    )
    # its forward under p.precision, and no more: gradients are averaged below
    model = accelerator.prepare_model(net, evaluation_mode=True)
    optimizer = accelerator.prepare_optimizer(optimizer)
    processes.share_statistics(net)
    history = resume(place, net, optimizer)
    part = kept(place, net, optimizer, len(history))
    processes.wait()  # all have read it before one writes
    steps, main = p.epochs * len(loader), processes.rank() == 0
    bar = progress(steps, len(history) * len(loader) + part.steps, main)
    written = time.monotonic()

    def learn(
        raw: dict, step: int, poses: torch.Generator, stains: torch.Generator
    ) -> dict[str, Tensor]:
        """One step: rate, losses, gradient, update."""
        for group in optimizer.param_groups:
            group["lr"] = poly_lr(step, steps, p)
        # all have the same batch in the same poses and stains, and each takes its rows of it
        batch = augment(raw, poses)
        if p.stain_jitter:
            batch["image"] = restained(batch["image"], p.stain_jitter, stains)
        batch = processes.share(batch) | {"step": step}
        with accelerator.autocast():  # the frozen encoder too
            losses = loss(model, batch)
        guard(losses["loss"], raw, patches, place.folder)
        # after the guard: a batch that is kept for study has changed nothing yet
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        processes.average_gradients(net)
        optimizer.step()
        # tensors, not numbers: asking a GPU for a number waits for all that it has to do
        return {name: value.detach() for name, value in losses.items()}

    for epoch in range(len(history), p.epochs):
        # an epoch's draws depend on nothing before it: resuming changes nothing
        torch.manual_seed(seed_of(place.seed, "epoch", epoch))
        poses, stains = (
            torch.Generator().manual_seed(seed_of(place.seed, what, epoch, 0))
            for what in ("poses", "stains")
        )
        sources = _sources(device, poses, stains)
        model.train()  # watch leaves it in evaluation mode
        bar.set_description(f"epoch {epoch + 1}/{p.epochs}", refresh=False)
        began, sums = time.perf_counter() - part.seconds, send_to_device(dict(part.sums), device)
        batches = skip_first_batches(loader, part.steps) if part.steps else loader
        first, end = epoch * len(loader) + part.steps, (epoch + 1) * len(loader)
        for step, items in enumerate(batches, start=first):
            if step == first and part.steps:
                # the order is drawn as it was; all other draws go on where they were
                for (_, put), state in zip(sources, part.draws, strict=True):
                    put(state)
            elif step == first and processes.rank():
                # the order is drawn, the same for all; what a network draws is each one's own
                torch.manual_seed(seed_of(place.seed, "epoch", epoch, processes.rank()))
            raw = send_to_device(items, accelerator.device)
            for name, value in learn(raw, step, poses, stains).items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update()
            late = (step + 1) % LOOK == 0 and step + 1 < end  # an epoch's own checkpoint is next
            if late and processes.agree(time.monotonic() - written > PAUSE):
                seconds, draws = time.perf_counter() - began, [ask() for ask, _ in sources]
                so_far = Part(step + 1 - end + len(loader), seconds, sums, draws)
                keep(place, net, optimizer, epoch, so_far)
                written = time.monotonic()
        part = Part()
        sums = processes.mean(sums)
        row = {"epoch": epoch + 1} | {k: v.item() / len(loader) for k, v in sums.items()}
        row["seconds"] = time.perf_counter() - began
        bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        history.append(row | (watch(net) if watch else {}))
        if main:
            save(place, net, optimizer, history)
        written = time.monotonic()
        if on_epoch:
            on_epoch(pd.DataFrame(history))
    bar.close()
    net.eval()
    return pd.DataFrame(history)


def progress(steps: int, done: int, shown: bool) -> tqdm:
    """A bar over the steps of a training, once a second; none where nothing is left to train.

    A notebook's bar sends messages by the dozen, and a client that reads late keeps the last 1000.
    """
    quiet = {} if shown and done < steps else {"disable": True}  # False would overrule TQDM_DISABLE
    return tqdm(total=steps, initial=done, leave=False, mininterval=1, **quiet)
