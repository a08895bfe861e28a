"""What the training step costs on the GPU at hand: benchmarks/gpu.sh runs this.

Prints a short table and writes gpu.json: equality with the CPU, seconds a step, images a second,
peak memory, the share of the card's matrix rate, the waits for the device, and where a step's time
goes. Weights are random: they cost what the published ones cost.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import naive
from protolib import bank, losses, presets
from protolib.classnet import ClassNet
from protolib.nets import encoders
from protolib.presets import Preset
from protolib.training import optimizer_of, set_up

C = 4
PATCHES = 23_422  # of the paper's training split of BCSS-WSSS, for the hours of its ten epochs
DTYPES = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16}


class Case:
    """Network, encoder, prototypes and a batch of noise of one preset on a device."""

    def __init__(self, p: Preset, device: str, batch: int):
        self.p, self.device = p, device
        self.encoder = encoders.load(p.encoder, p.encoder_size).to(device)
        D, S = self.encoder.D, C * p.K
        generator = torch.Generator().manual_seed(0)
        prompts = F.normalize(torch.randn(S, D, generator=generator), dim=1)
        torch.manual_seed(0)
        with warnings.catch_warnings():  # random weights are what is asked for
            warnings.simplefilter("ignore")
            self.net = ClassNet(p, C, prompts).to(device)
        space = bank.raw_space(torch.zeros(1, D).numpy())
        self.bank = full_bank(p, prompts, space)
        set_up(device, p)
        self.optimizer = optimizer_of(self.net, p)
        labels = torch.zeros(batch, C)
        for i in range(batch):
            labels[i, [i % C, (i + 1) % C]] = 1  # two classes a patch, as most have
        images = torch.rand(batch, 3, p.size, p.size, generator=generator)
        self.batch = {"image": images.to(device), "label": labels.to(device), "step": 0}

    def loss(self) -> Tensor:
        return losses.pbip_loss(self.net, self.batch, self.p, self.bank, self.encoder)["loss"]

    def loss_in(self, dtype: torch.dtype | None) -> Tensor:
        """The loss with its products in this type, in float32 where none is given."""
        kind = self.device.split(":")[0]
        with torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None):
            return self.loss()

    def step(self, dtype: torch.dtype | None) -> None:
        loss = self.loss_in(dtype)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def full_bank(p: Preset, prompts: Tensor, space: bank.Space) -> bank.Bank:
    """A bank of these prototypes (S, D) that stands on enough patches to teach."""
    patches = np.arange(max(1, p.enough) * len(prompts))
    clusters = patches // max(1, p.enough)
    names = tuple("abcd")
    return bank.Bank(names, p.K, "", prompts.numpy(), space, patches, clusters, ())


class NaiveCase(Case):
    """The same by the naive reference; the encoder's weights take gradients, as released."""

    def loss(self) -> Tensor:
        images, labels = self.batch["image"], self.batch["label"]
        self.encoder.requires_grad_(True)
        prepared = self.net.prepare(images)
        maps = self.net.read(prepared)
        logits = self.net.logits(maps, self.p.merge)
        cls = losses.classification_loss(logits, labels, self.p.level_weights)
        prototypes = images.new_tensor(self.bank.prototypes)
        match = naive.matching_loss(
            prepared, maps[-1], labels, prototypes, Features(self.encoder), self.p.K
        )
        return cls + self.p.beta * (match + self.p.penalty * maps[-1].mean())


class Features(nn.Module):
    """The encoder behind its own preparation, as the released loss calls it."""

    def __init__(self, encoder: encoders.Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)


def cases(size: int, tiny: bool) -> dict[str, tuple[type[Case], Preset]]:
    """The presets that are timed, at full width or, for a test on a CPU, at a tiny one."""
    width = {"encoder": "swin_random", "backbone": "mit_b1"}
    if tiny:
        width = {"encoder": "swin_test", "backbone": "mit_test"}
    own = {"size": size, "cluster_encoder": ""} | width
    released = replace(presets.preset("released_code"), **own)
    paper = replace(presets.preset("paper_text"), **own)
    pooled = replace(
        paper,
        look="masked_pooling",
        space="encoder",
        span="share",
        threshold="none",
        negatives="present",
        tau=0.3,
        beta=1.0,
    )
    return {
        "released code, naive": (NaiveCase, released),
        "released code": (Case, released),
        "paper text": (Case, paper),
        "masked pooling": (Case, pooled),
    }


def seconds(work: Callable[[], None], device: str, repeats: int) -> list[float]:
    """Wall seconds of each repeat, the device idle before and after."""
    found = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - began)
    return found


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matrix_rate(device: str, n: int) -> float:
    """FLOP/s of a bfloat16 product of two n x n matrices of noise: the median of ten."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * n**3 / statistics.median(seconds(lambda: a @ b, device, 10))


def agreement(size: int, tiny: bool, device: str) -> dict[str, dict[str, float]]:
    """How far loss and gradient on the device are from the CPU's float32, as shares of their
    size; one step of a batch of four."""
    found = {}
    for name, (kind, p) in cases(size, tiny).items():
        if kind is NaiveCase:
            continue
        here = gradient(kind(p, "cpu", 4), None)
        for precision, dtype in DTYPES.items():
            there = gradient(kind(replace(p, precision=precision), device, 4), dtype)
            far = [float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(there, here)]
            found[f"{name}, {precision}"] = {"loss": far[0], "gradient": far[1]}
    return found


def gradient(case: Case, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Loss () and its gradient with respect to the heads' weights, on the CPU in float64."""
    case.net.eval()  # dropped paths would differ between devices
    loss = case.loss_in(dtype)
    wanted = [w for w in case.net.heads.parameters() if w.requires_grad]
    parts = torch.autograd.grad(loss, wanted, allow_unused=True)
    flat = torch.cat([g.flatten() for g in parts if g is not None])
    return loss.detach().cpu().double(), flat.detach().cpu().double()


def timing(case: Case, dtype: torch.dtype | None, repeats: int, rate: float) -> dict[str, float]:
    """Median seconds a step and their spread, images a second, peak memory, share of the matrix
    rate."""
    for _ in range(3):
        case.step(dtype)
    counter = FlopCounterMode(display=False)
    with counter:
        case.step(dtype)
    cuda = case.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    found = seconds(lambda: case.step(dtype), case.device, repeats)
    median, batch = statistics.median(found), len(case.batch["image"])
    return {
        "batch": batch,
        "seconds": median,
        "lowest": min(found),
        "highest": max(found),
        "images_per_second": batch / median,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "tflop": counter.get_total_flops() / 1e12,
        "share_of_matrix_rate": counter.get_total_flops() / median / rate,
        "hours_of_ten_epochs": 10 * PATCHES / batch * median / 3600,
    }


def profile(case: Case, dtype: torch.dtype | None) -> dict:
    """Waits for the device in one step, and the kernels that take most of its time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    case.step(dtype)
    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        case.step(dtype)
        wait(case.device)
    events = seen.key_averages()
    of = {event.key: event for event in events}
    waits = {
        k: of[k].count for k in ("cudaStreamSynchronize", "aten::item", "aten::nonzero") if k in of
    }
    on_device = sorted(events, key=lambda e: -e.self_device_time_total)[:12]
    return {
        "calls": waits,
        "launches": of["cudaLaunchKernel"].count if "cudaLaunchKernel" in of else None,
        "kernels_ms": {e.key[:70]: round(e.self_device_time_total / 1e3, 3) for e in on_device},
        "device_ms": round(sum(e.self_device_time_total for e in events) / 1e3, 2),
    }


def main() -> None:
    """Measure and write the file."""
    asked = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    asked.add_argument("--out", type=Path, default=Path("benchmarks/gpu.json"))
    asked.add_argument("--tiny", action="store_true", help="tiny widths, for a test on a CPU")
    asked.add_argument("--largest", type=int, default=256, help="the largest batch that is tried")
    asked.add_argument("--only", nargs="*", default=(), help="names of cases, all if none is given")
    asked.add_argument("--no-agreement", action="store_true", help="leave the CPU out")
    args = asked.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    size, repeats, n = (64, 3, 256) if args.tiny else (224, 15, 8192)
    rate = matrix_rate(device, n)
    made = {"device": card, "torch": torch.__version__, "matrix_tflops": rate / 1e12}
    print(f"{card}, torch {torch.__version__}, bfloat16 product {n}^3: {rate / 1e12:.0f} TFLOP/s")
    made["agreement"] = {} if args.no_agreement else agreement(size, args.tiny, device)
    for name, far in made["agreement"].items():
        print(f"{name:<32} loss {far['loss']:.1e}, gradient {far['gradient']:.1e} from the CPU's")
    made["steps"], made["profile"] = {}, {}
    for name, (kind, p) in cases(size, args.tiny).items():
        if args.only and name not in args.only:
            continue
        batches = [p.batch] if kind is NaiveCase else [p.batch, args.largest]
        for batch in batches:
            for precision, dtype in DTYPES.items():
                label = f"{name}, batch {batch}, {precision}"
                try:
                    case = kind(replace(p, precision=precision), device, batch)
                    row = timing(case, dtype, 3 if kind is NaiveCase else repeats, rate)
                except torch.cuda.OutOfMemoryError:
                    made["steps"][label] = "out of memory"
                    continue
                made["steps"][label] = row
                print(
                    f"{label:<48} {1e3 * row['seconds']:8.1f} ms, "
                    f"{row['images_per_second']:7.1f} images/s, {row['peak_gb'] or 0:5.1f} GB, "
                    f"{100 * row['share_of_matrix_rate']:5.1f} % of the matrix rate",
                    flush=True,
                )
                if device == "cuda" and batch == p.batch and kind is Case:
                    made["profile"][label] = profile(case, dtype)
                del case
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(made, indent=1) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
