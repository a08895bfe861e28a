"""One training in several processes: each takes its share of every batch, and all of them together
compute what one would.

What they compute does not depend on how many they are, but for the order of sums (losses agree
within 1e-5) and for draws inside a network, which every process has for itself: dropout, and the
paths that MiT and Swin drop while they train. So the number of processes is no part of a key, as
the device is none.
"""

import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

ASKED = "PROTOLIB_PROCESSES"  # how many a run shall have, where nothing else is said


def asked() -> int:
    """The number of processes that the environment asks for. Raises ValueError for none."""
    text = os.environ.get(ASKED, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{ASKED} is {text!r}; give the number of processes, from 1 on")
    return int(text)


def count() -> int:
    """How many processes work together, this one included."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0: the one that writes."""
    return dist.get_rank() if count() > 1 else 0


def join(device: str) -> str:
    """Meet the others, where accelerate or torchrun has started several; gives the device of this
    one.

    device: "cpu", "cuda" or "mps", with a number or without.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    from accelerate import PartialState  # here: kernels load torch and no more

    kind = device.partition(":")[0]
    PartialState(cpu=kind == "cpu")  # once: a second call gives the first one's state
    if kind != "cuda":
        return kind
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def wait() -> None:
    """Go on when all have come here."""
    if count() > 1:
        dist.barrier()


def agree(answer: bool) -> bool:
    """The first one's answer: what is there to be made must be the same for all."""
    return gathered(answer)[0]


# shares


def share(batch: dict) -> dict:
    """This process's rows of a batch whose tensors have B rows; all of it where there is one.

    Raises ValueError where the shares would not be of one size: the mean of their losses would not
    be that of the batch.
    """
    n = count()
    if n == 1:
        return batch
    rows = len(batch["image"])
    if rows % n:
        raise ValueError(
            f"{rows} patches of a batch cannot be shared by {n} processes; choose a number that "
            f"divides {rows}"
        )
    own = slice(rank(), None, n)
    return {name: v[own] if isinstance(v, Tensor) and v.dim() else v for name, v in batch.items()}


def own_rows(rows: Iterable[int], batch: int) -> list[int]:
    """Of rows that are predicted in batches, those of this process: whole batches, as one process
    has them, for a network's sums differ in the last digit from one batch to another."""
    n, r = count(), rank()
    return [row for i, row in enumerate(rows) if i // batch % n == r]


def gathered(own: Any) -> list[Any]:
    """What each process has, in their order."""
    if count() == 1:
        return [own]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, own)
    return found


def in_order(own: np.ndarray | None, rows: list[int]) -> np.ndarray:
    """An array of all rows in their order, of which this process has made `own`, None where `rows`
    is empty."""
    parts = gathered((own, rows))
    made = np.concatenate([part for part, of in parts if of])
    return made[np.argsort(np.concatenate([np.array(of, int) for _, of in parts]))]


def weight(terms: int | Tensor, like: Tensor) -> Tensor | float:
    """What the mean of a loss over its terms is to be multiplied by, so that the mean over the
    processes is the mean over the terms of all.

    terms: how many this process has; every process must ask. like: a tensor on its device.
    """
    if count() == 1:
        return 1.0
    own = torch.as_tensor(terms, dtype=torch.float32, device=like.device)
    total = own.clone()
    dist.all_reduce(total)
    return own * count() / total.clamp_min(1)


def mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named scalars, each averaged over the processes."""
    if count() == 1:
        return values
    stacked = torch.stack([value.double() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked / count()))


# the network


def average_gradients(net: nn.Module) -> None:
    """Give each parameter the mean of the processes' gradients; one that no process has stays
    without, as it would in one."""
    if count() == 1:
        return
    trained = [w for w in net.parameters() if w.requires_grad]
    there = trained[0].new_tensor([float(w.grad is not None) for w in trained])
    parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in trained]
    flat = torch.cat([there, *(part.float().flatten() for part in parts)])
    dist.all_reduce(flat)  # all at once: a network has hundreds of small ones
    there, flat = flat.split([len(trained), len(flat) - len(trained)])
    means = (flat / count()).split([w.numel() for w in trained])
    for w, has, found in zip(trained, there.tolist(), means):
        w.grad = found.view_as(w).to(w.dtype) if has else None


def share_statistics(net: nn.Module) -> None:
    """Let batch-norms in training take mean and variance from the batch of all processes.

    PyTorch's own SyncBatchNorm does not run on a CPU.
    """
    if count() == 1:
        return
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # an attribute of one layer in the place of its method, which mypy cannot know
            layer.forward = partial(_normalised, layer, layer.forward)  # type: ignore


class _Total(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _normalised(norm: nn.BatchNorm2d, alone: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A batch-norm's output (B, C, H, W), with the statistics of all processes where it trains."""
    if not norm.training:
        return alone(x)
    values = x.float()
    n = count() * values[:, 0].numel()  # shares are of one size
    mean = _Total.apply(values.sum((0, 2, 3))) / n  # (C,)
    apart = values - mean[:, None, None]
    var = _Total.apply(apart.square().sum((0, 2, 3))) / n  # (C,)
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * n / (n - 1), norm.momentum)
    scale = norm.weight * (var + norm.eps).rsqrt()
    y = (apart * scale[:, None, None] + norm.bias[:, None, None]).to(x.dtype)
    for name in ("drop", "act"):  # timm's norm has its activation in it
        y = getattr(norm, name, nn.Identity())(y)
    return y


# starting them


def start(n: int, work: Callable, *given: Any) -> None:
    """Call work(*given) in n new processes of this machine that know of each other, and wait.

    work and given go to them pickled, over a pipe. Raises RuntimeError with one sentence where one
    of them fails or is killed; the others are ended then.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, torch.get_num_threads() // n)
    try:
        torch.multiprocessing.spawn(_member, (n, port, threads, work, given), nprocs=n)
    except torch.multiprocessing.ProcessExitedException as error:
        how = error.signal_name or f"exit code {error.exit_code}"
        raise RuntimeError(
            f"process {error.error_index + 1} of {n} was ended ({how}), and the others with it; "
            "the epochs that were done are kept: the same call goes on after them"
        ) from None
    except torch.multiprocessing.ProcessRaisedException as error:
        said = str(error).strip().splitlines()
        raise RuntimeError(f"process {error.error_index + 1} of {n} failed: {said[-1]}") from error


def _member(rank: int, n: int, port: int, threads: int, work: Callable, given: tuple) -> None:
    """One of the processes: accelerate finds out from the environment."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(threads)
    try:
        work(*given)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
