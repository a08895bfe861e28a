"""The training loop of both stages: accelerate for every device, resume, a guard against a non-finite loss, history."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from protolib import cams
from protolib.bank import Bank
from protolib.classnet import ClassNet, classification_loss
from protolib.encoders import Encoder
from protolib.files import whole, write_text
from protolib.matching import matching_loss
from protolib.presets import Preset


def dihedral(images: Tensor, which: Tensor) -> Tensor:
    """Each image turned and mirrored into one of its eight poses: tissue has no up or down. Notebook 04.

    images: (B, ..., H, W), H = W; which: (B,) int64 in 0..7: which % 4 quarter turns, mirrored first where which >= 4.
    """
    out = torch.empty_like(images)
    for pose in which.unique().tolist():
        rows = which == pose
        view = images[rows].flip(-1) if pose >= 4 else images[rows]
        out[rows] = view.rot90(pose % 4, (-2, -1))
    return out


def augment(batch: dict, generator: torch.Generator) -> dict:
    """A training batch in random poses, image as float in [0, 1], mask (if any) turned with it. Notebook 04."""
    which = torch.randint(8, (len(batch["image"]),), generator=generator).to(batch["image"].device)
    turned = {k: dihedral(batch[k], which) for k in ("image", "mask") if k in batch}
    return batch | turned | {"image": turned["image"].float() / 255}


def poly_lr(step: int, steps: int, lr: float) -> float:
    """Polynomial decay of power 1: lr * (1 - step / steps), as in the released code. Notebook 04."""
    return lr * (1 - step / steps)


def bare(net: nn.Module) -> nn.Module:
    """The network itself where accelerate has wrapped it for several processes. Notebook 04."""
    return getattr(net, "module", net)


def cam_loss(net: ClassNet, batch: dict) -> dict[str, Tensor]:
    """Classification alone: the loss of the plain CAM and of the prototypes without matching. Eq. (7, 8), notebook 04."""
    maps = bare(net).class_maps(net(batch["image"]))
    return {"loss": classification_loss(bare(net).logits(maps), batch["label"])}


def pbip_loss(net: ClassNet, batch: dict, *, preset: Preset, bank: Bank, encoder: Encoder) -> dict[str, Tensor]:
    """L = alpha * L_CLS + beta * L_SIM, with both parts by name. Eq. (6), notebook 04.

    batch: image (B, 3, H, W) float in [0, 1] and label (B, C); encoder: frozen, the one that made the bank.
    """
    images, labels = batch["image"], batch["label"]
    maps = bare(net).class_maps(net(images))
    cls = classification_loss(bare(net).logits(maps), labels)
    fused = cams.fuse(maps, bare(net).fusion, maps[0].shape[2:])  # (B, C, h, w), the finest level's cells
    match = matching_loss(
        images, fused, labels, images.new_tensor(bank.prototypes), lambda x: bank.normalize(encoder(x)),
        K=bank.K, span=preset.span, delta=preset.delta, fill=preset.fill, tau=preset.tau,
        theta_fg=preset.theta_fg, theta_bg=preset.theta_bg,
    )  # fmt: skip
    return {"loss": preset.alpha * cls + preset.beta * match, "classification": cls, "matching": match}


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch of every run: (seed, epoch) hashed to 0..2**31-1. Notebook 04."""
    return int(hashlib.sha256(f"{seed}/{epoch}".encode()).hexdigest()[:8], 16) >> 1


def save(folder: Path, key: str, net: nn.Module, optimizer, history: list[dict]) -> None:
    """Write checkpoint.pt and history.csv, each whole or not at all. Notebook 04."""
    state = {"key": key, "net": net.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    with whole(folder / "checkpoint.pt") as file:
        torch.save(state, file)
    write_text(folder / "history.csv", pd.DataFrame(history).to_csv(index=False))


def resume(folder: Path, key: str, net: nn.Module, optimizer=None) -> list[dict]:
    """Load checkpoint.pt of the same key into net (and optimizer); returns its history, empty if there is none. Notebook 04."""
    if not (folder / "checkpoint.pt").exists():
        return []
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    if state["key"] != key:  # another run's weights: begin anew rather than mix the two
        return []
    net.load_state_dict(state["net"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return state["history"]


def guard(loss: Tensor, batch: dict, dataset, folder: Path) -> None:
    """Stop at a loss that is not finite and keep its batch in non_finite_batch.pt; raises FloatingPointError. Notebook 04."""
    if torch.isfinite(loss):
        return
    with whole(folder / "non_finite_batch.pt") as file:
        torch.save({k: v.cpu() for k, v in batch.items()}, file)
    names = ", ".join(dataset.ids[i] for i in batch["index"].tolist()[:4])
    raise FloatingPointError(
        f"the loss is {loss.item()} on the batch that begins with {names}; it is kept in non_finite_batch.pt; "
        "look for empty or damaged patches in it, or lower the learning rate"
    )


def fit(
    net: nn.Module,
    dataset,
    loss_fn: Callable[[nn.Module, dict], dict[str, Tensor]],
    folder: Path,
    *,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    seed: int,
    key: str = "",
    device: str = "auto",
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Train `net` in place; returns the history, one row per epoch with the mean of each loss. Notebook 04.

    loss_fn(net, batch) -> named scalar losses, of which "loss" is minimised. folder: receives history.csv and checkpoint.pt
    after every epoch; a checkpoint with the same `key` there is continued. Raises FloatingPointError at the first loss that
    is not finite and leaves the batch in non_finite_batch.pt.
    """
    accelerator = Accelerator(cpu=device == "cpu")
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=lr, weight_decay=weight_decay)
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, drop_last=len(dataset) > batch)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    history = resume(folder, key, net, optimizer)
    # one bar, once a second: a notebook's bar sends messages by the dozen, and a client that reads late keeps the last 1000
    quiet = {} if accelerator.is_main_process else {"disable": True}  # disable=False would overrule TQDM_DISABLE
    bar = tqdm(total=epochs * len(loader), initial=len(history) * len(loader), leave=False, mininterval=1, **quiet)
    for epoch in range(len(history), epochs):
        torch.manual_seed(epoch_seed(seed, epoch))  # an epoch's draws depend on nothing before it: resuming changes nothing
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch) + accelerator.process_index)
        model.train()
        bar.set_description(f"epoch {epoch + 1}/{epochs}", refresh=False)
        began, sums = time.perf_counter(), {}
        for i, raw in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = poly_lr(epoch * len(loader) + i, epochs * len(loader), lr)
            losses = loss_fn(model, augment(raw, generator))
            guard(losses["loss"], raw, dataset, folder)
            optimizer.zero_grad()
            accelerator.backward(losses["loss"])
            optimizer.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            bar.set_postfix(loss=f"{losses['loss'].item():.3f}", refresh=False)
            bar.update()
        history.append({"epoch": epoch + 1} | {k: v / len(loader) for k, v in sums.items()})
        history[-1]["seconds"] = time.perf_counter() - began
        if accelerator.is_main_process:
            save(folder, key, net, optimizer, history)
        if on_epoch:
            on_epoch(pd.DataFrame(history))
    bar.close()
    net.eval()
    return pd.DataFrame(history)
