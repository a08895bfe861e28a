"""The training loop of both stages: accelerate for every device, resume, a guard against a
non-finite loss, history."""

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

from protolib.files import whole, write_text
from protolib.losses import bare


def dihedral(images: Tensor, which: Tensor) -> Tensor:
    """Each image turned and mirrored into one of its eight poses: tissue has no up or down.
    Notebook 04.

    images: (B, ..., H, W), H = W; which: (B,) int64 in 0..7: which % 4 quarter turns, mirrored
    first where which >= 4.
    """
    out = torch.empty_like(images)
    for pose in which.unique().tolist():
        rows = which == pose
        view = images[rows].flip(-1) if pose >= 4 else images[rows]
        out[rows] = view.rot90(pose % 4, (-2, -1))
    return out


def augment(batch: dict, generator: torch.Generator) -> dict:
    """A training batch in random poses, image as float in [0, 1], mask (if any) turned with it.
    Notebook 04."""
    which = torch.randint(8, (len(batch["image"]),), generator=generator).to(batch["image"].device)
    turned = {k: dihedral(batch[k], which) for k in ("image", "mask") if k in batch}
    return batch | turned | {"image": turned["image"].float() / 255}


def poly_lr(
    step: int, steps: int, lr: float, power: float = 1.0, warmup: int = 0, ratio: float = 0.0
) -> float:
    """Linear warm-up from ratio * lr, then polynomial decay lr * (1 - (step - warmup) /
    steps)^power. Notebook 04.

    step: from 0; past the last of `steps` the rate stays. The decay is that of the released code:
    with warm-up it does not come to 0, for it is divided by all steps. Utils/optimizer.py.
    """
    if step < warmup:
        return lr * (1 - (1 - step / warmup) * (1 - ratio))
    return lr * (1 - (min(step, steps - 1) - warmup) / steps) ** power


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch of every run: (seed, epoch) hashed to 0..2**31-1. Notebook
    04."""
    return int(hashlib.sha256(f"{seed}/{epoch}".encode()).hexdigest()[:8], 16) >> 1


def save(folder: Path, key: str, net: nn.Module, optimizer, history: list[dict]) -> None:
    """Write checkpoint.pt and history.csv, each whole or not at all. Notebook 04."""
    state = {
        "key": key,
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": history,
    }
    with whole(folder / "checkpoint.pt") as file:
        torch.save(state, file)
    write_text(folder / "history.csv", pd.DataFrame(history).to_csv(index=False))


def resume(folder: Path, key: str, net: nn.Module, optimizer=None) -> list[dict]:
    """Load checkpoint.pt of the same key into net (and optimizer); returns its history, empty if
    there is none. Notebook 04."""
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
    """Stop at a loss that is not finite and keep its batch in non_finite_batch.pt; raises
    FloatingPointError. Notebook 04."""
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
    lr_power: float = 1.0,
    warmup: float = 0.0,
    warmup_ratio: float = 0.0,
    key: str = "",
    device: str = "auto",
    watch: Callable[[nn.Module], dict[str, float]] | None = None,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Train `net` in place; returns the history, one row per epoch with the mean of each loss.
    Notebook 04.

    loss_fn(net, batch) -> named scalar losses, of which "loss" is minimised; batch["step"] counts
    from 0. warmup: epochs, see poly_lr. watch(net): more numbers for the row of an epoch, such as
    IoU on val; they steer nothing and their time is not counted. folder: receives history.csv and
    checkpoint.pt after every epoch; a checkpoint with the same `key` is continued. Raises
    FloatingPointError at the first loss that is not finite and leaves the batch in
    non_finite_batch.pt.
    """
    accelerator = Accelerator(cpu=device == "cpu")
    optimizer = torch.optim.AdamW(
        (p for p in net.parameters() if p.requires_grad), lr=lr, weight_decay=weight_decay
    )
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, drop_last=len(dataset) > batch)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    history = resume(folder, key, net, optimizer)
    # one bar, once a second: a notebook's bar sends messages by the dozen, and a client that reads
    # late keeps the last 1000 and none where there is nothing left to train; disable=False would
    # overrule TQDM_DISABLE
    quiet = {} if accelerator.is_main_process and len(history) < epochs else {"disable": True}
    bar = tqdm(
        total=epochs * len(loader),
        initial=len(history) * len(loader),
        leave=False,
        mininterval=1,
        **quiet,
    )
    for epoch in range(len(history), epochs):
        torch.manual_seed(
            epoch_seed(seed, epoch)
        )  # an epoch's draws depend on nothing before it: resuming changes nothing
        generator = torch.Generator().manual_seed(
            epoch_seed(seed, epoch) + accelerator.process_index
        )
        model.train()
        bar.set_description(f"epoch {epoch + 1}/{epochs}", refresh=False)
        began, sums = time.perf_counter(), {}
        for i, raw in enumerate(loader):
            step, steps = epoch * len(loader) + i, epochs * len(loader)
            for group in optimizer.param_groups:
                group["lr"] = poly_lr(
                    step, steps, lr, lr_power, round(warmup * len(loader)), warmup_ratio
                )
            losses = loss_fn(model, augment(raw, generator) | {"step": step})
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
        if watch:
            history[-1] |= watch(bare(model))
        if accelerator.is_main_process:
            save(folder, key, net, optimizer, history)
        if on_epoch:
            on_epoch(pd.DataFrame(history))
    bar.close()
    net.eval()
    return pd.DataFrame(history)
