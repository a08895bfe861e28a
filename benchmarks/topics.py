"""What is compared: one function a topic, each with the naive reference first."""

import asyncio
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import gpu, naive
from benchmarks.measure import compare, seconds, summary, wall_of_gpu
from protolib import bank, cams, losses, maps, matching, metrics, presets, segmentation
from protolib.classnet import ClassNet
from protolib.data import patches, regions, specs
from protolib.presets import Preset
from protolib.study import runner

C = gpu.C
BCSS = specs.SPECS["bcss-wsss"]
ROOT = Path(__file__).resolve().parents[1]
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


def step(device: str) -> list[dict]:
    """A training step: forward, loss, backward, update. Batch 2 at the paper's width, Swin-T and
    MiT-B1 with random weights at 224 px; and the embedded network as preset quick has it."""
    cases = gpu.cases(224, tiny=False)
    made = {name: kind(p, device, 2) for name, (kind, p) in cases.items()}
    released = {name: made.pop(name) for name in ("released code, naive", "released code")}
    what = "step, 224 px, Swin-T and MiT-B1, batch 2"
    rows = [_steps(what, released, device, repeats=3)]
    del released  # two networks with their optimizers
    wide = {"no matching": NoMatching(cases["masked pooling"][1], device, 2)}
    wide |= {name: made[name] for name in ("masked pooling", "paper text")}
    rows.append(_steps(f"{what}, what matching adds", wide, device, repeats=3))
    quick = presets.preset("quick")
    own = {
        "no matching": NoMatching(quick, device, quick.batch),
        "masked pooling": gpu.Case(quick, device, quick.batch),
        "the paper's loss on masked images": gpu.Case(
            presets.with_masked_images(quick), device, quick.batch
        ),
    }
    what = f"step, preset quick, {quick.size} px, batch {quick.batch}, what matching adds"
    return [*rows, _steps(what, own, device, repeats=3)]


class NoMatching(gpu.Case):
    """The step of prototypes alone."""

    def loss(self) -> torch.Tensor:
        return losses.cam_loss(self.net, self.batch, self.p)["loss"]


def _steps(what: str, made: dict, device: str, repeats: int) -> dict:
    clock = time.process_time if device == "cpu" else wall_of_gpu
    return compare(what, {n: partial(c.step, None) for n, c in made.items()}, repeats, clock)


def match(device: str) -> list[dict]:
    """The matching loss alone, pairing and masking included, with an encoder that costs nothing:
    64 patches of 64 px, about 300 pairs."""
    p = replace(presets.preset("released_code"), chunk=0, theta_fg=1.0, theta_bg=1.0)
    generator = torch.Generator().manual_seed(0)
    S = C * p.K
    images = torch.rand(64, 3, 64, 64, generator=generator)
    prototypes = F.normalize(torch.randn(S, 48, generator=generator), dim=1)
    logits = torch.randn(64, S, 4, 4, generator=generator, requires_grad=True)
    labels = torch.ones(64, C)
    encode = lambda pictures: F.adaptive_avg_pool2d(pictures, 4).flatten(1)  # (P, 48)
    unit = lambda pictures: F.normalize(encode(pictures), dim=1)

    def ours() -> torch.Tensor:
        return matching.matching_loss(images, logits, labels, prototypes, unit, p)

    def reference() -> torch.Tensor:
        return naive.matching_loss(images, logits, labels, prototypes, encode, p.K)

    pairs = int(matching.choose_pairs(logits, labels, p).sum())
    assert abs(ours().item() / reference().item() - 1) < 1e-4
    both = {"a loop over pairs": reference, "protolib.matching": ours}
    both = {name: (lambda loss=loss: loss().backward()) for name, loss in both.items()}
    return [compare(f"matching loss, released, {pairs} pairs, forward and backward", both, 5)]


def clustering(device: str) -> list[dict]:
    """Spherical k-means and the white filter."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3 * C, 512))
    X = centres.repeat(20_000 // (3 * C) + 1, 0)[:20_000] + 2 * rng.normal(size=(20_000, 512))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    classes = [X[c * 5_000 : c * 5_000 + 5_000] for c in range(C)]
    first = bank.random_rows(classes[0], 3, 0)
    assert (naive.kmeans(classes[0], first) == bank.lloyd(classes[0], first).labels).all()
    once = {
        "a loop over rows": lambda: [naive.kmeans(Z, Z[:3]) for Z in classes],
        "bank.lloyd": lambda: [bank.lloyd(Z, Z[:3]) for Z in classes],
    }
    rows = [compare("k-means, 20,000 x 512, 4 classes, K = 3, one start", once, 3)]
    ten = {"bank.spherical_kmeans": lambda: [bank.spherical_kmeans(Z, 3, 0, 10) for Z in classes]}
    rows.append(compare("the same, 10 starts by k-means++", ten, 3))
    images = rng.integers(150, 256, (400, 224, 224, 3), np.uint8)
    assert (naive.white_share(images[:20]) == regions.white_share(images[:20])).all()
    white = {
        "logarithms of all": lambda: naive.white_share(images),
        "regions.white_share": lambda: regions.white_share(images),
    }
    return [*rows, compare("white filter, 400 patches of 224 px", white, 5)]


def inference(device: str) -> list[dict]:
    """Masks and scores of 32 patches: the released recipe of six views, what it costs beside the
    network's own passes, and the evaluation of stage 2 in eight poses."""
    base = presets.preset("quick")
    recipe = dict(scores="unit", gating="zeroed", tta="six", align_corners=True, levels=(2, 3, 4))
    p, (net, images, truth) = replace(base, **recipe), _judged(base)
    labels = torch.from_numpy(np.eye(C, dtype=np.float32)[np.arange(len(images)) % C])
    labels[:, 0] = 1
    d = metrics.band_width(*truth.shape[1:])

    def reference() -> tuple:
        found = naive.six_views(net.read, net.prepare(images), labels, p.fusion, base.K)
        return np.stack(found), naive.score(truth, found, C, d)

    def ours() -> tuple:
        scores, _ = cams.predict(net, images, p, p.tta)
        masks = maps.argmax_masks(scores, labels, p.gating).numpy()
        return masks, metrics.Counts.of(truth, masks, C)

    def passes() -> None:
        with torch.no_grad():
            for mirrored, brightness, _ in cams.VIEWS["six"]:
                net.read(brightness * net.prepare(images.flip(3) if mirrored else images))

    (slow, counted), (fast, counts) = reference(), ours()
    assert (slow != fast).mean() < 1e-3  # where two scores are equal but for their rounding
    assert (naive.score(truth, fast, C, d)[1] == counts.boundary).all()
    assert counted[0].sum() == counts.matrix.sum()
    six = {"batches of one through numpy": reference, "cams.predict": ours, "its passes": passes}
    rows = [compare(f"six views and scores, 32 patches of {base.size} px", six, 3)]
    stack = torch.randn(32, C, 224, 224, generator=torch.Generator().manual_seed(0))
    assert (maps.winners(stack) == stack.argmax(1)).all()
    best = {"argmax": lambda: stack.argmax(1), "maps.winners": lambda: maps.winners(stack)}
    rows.append(compare("the winning class, 32 maps of 224 px", best, 7))
    blocks = np.kron(
        np.random.default_rng(0).integers(0, C + 1, (32, 8, 8)), np.ones((28, 28), int)
    )
    masks, wide = blocks.astype(np.uint8), metrics.band_width(224, 224)
    other = np.roll(masks, 3, 2) % C
    score = {
        "one class at a time": lambda: naive.score(masks, other, C, wide),
        "metrics.Counts": lambda: metrics.Counts.of(masks, other, C),
    }
    rows.append(compare("pixels and borders of 32 masks of 224 px", score, 5))
    small, found = masks[:, :64, :64].copy(), other[:, :64, :64].copy()
    slides = np.arange(32) % 6
    few = {
        "a slide and a rule at a time": lambda: [
            metrics.Counts.of(small[slides == i], found[slides == i], C, rule)
            for i in range(6)
            for rule in metrics.IGNORE
        ],
        "metrics.of_groups": lambda: metrics.of_groups(small, found, slides, C),
    }
    rows.append(compare("counts of 32 masks of 64 px of six slides, both rules", few, 7))
    lean = presets.preset("lean")
    student, patches64 = segmentation.DeepLabV2(lean, C).eval(), images[:, :, :64, :64]

    def evaluated() -> None:
        scores = segmentation.predict(student, patches64, lean.stage2_tta)
        present = segmentation.present_classes(scores)
        for given in (present, labels, torch.ones_like(labels)):  # as an evaluation closes them
            masks = maps.argmax_masks(scores, given, lean.gating).numpy()
            metrics.of_groups(small, masks, slides, C)

    def poses() -> None:
        with torch.no_grad():
            for k in range(8):
                student(maps.pose(patches64, k))

    stage2 = {"its passes": poses, "all of the evaluation": evaluated}
    return [*rows, compare("stage 2 of lean in eight poses, 32 patches of 64 px", stage2, 3)]


def _judged(p: Preset) -> tuple[ClassNet, torch.Tensor, np.ndarray]:
    """A network of the preset's kind, 32 images and their masks, of noise."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    prompts = F.normalize(torch.randn(C * p.K, 496, generator=generator), dim=1)
    images = torch.rand(32, 3, p.size, p.size, generator=generator)
    blocks = torch.randint(0, C + 1, (32, p.size // 16, p.size // 16), generator=generator)
    truth = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2).numpy().astype(np.uint8)
    return ClassNet(p, C, prompts).eval(), images, truth


def data(device: str) -> list[dict]:
    """Opening a set that the cache holds, 23,000 patches of 32 px, and reading its patches."""
    with _folder() as folder:
        n, rng = 23_000, np.random.default_rng(0)
        tree = folder / "set"
        for split, many in (("train", n - 20), ("val", 10), ("test", 10)):
            own = tree / split if split == "train" else tree / split / "img"
            own.mkdir(parents=True)
            masks = None if split == "train" else tree / split / "mask"
            if masks:
                masks.mkdir()
            for i in range(many):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
                label = "[1010]" if split == "train" else ""
                image.save(own / f"s{i}{label}.png", compress_level=0)
                if masks:
                    Image.fromarray(np.full((32, 32), i % C, np.uint8)).save(masks / f"s{i}.png")
        cache = dict(cache=folder / "cache", data_root=tree)
        load = partial(patches.load, "bcss-wsss", "train", 32, **cache)
        first = seconds(load)
        files = sorted((tree / "train").iterdir())

        def again() -> None:
            specs._checked.clear()  # as another process finds it
            load()

        def decode() -> None:
            for path in files:
                np.asarray(Image.open(path).convert("RGB"))

        made = load()
        print(f"decoded once in {first:.1f} CPU s")
        reading = {
            "decoded each time": decode,
            "from the cache": lambda: [made[i] for i in range(n - 20)],
        }
        return [
            compare("opening a cached set of 23,000 patches", {"patches.load": again}, 3),
            compare("reading its patches once", reading, 3),
        ]


def story(device: str) -> list[dict]:
    """A kernel that has imported what notebooks import: started, and forked; then the whole story
    at preset smoke, start to report, by the CPU seconds of all its processes."""
    from jupyter_client import AsyncKernelManager

    from protolib.study import kernels

    runner.use_own_kernel()  # the first round, which is not counted, makes the nest

    both = {"a kernel of its own": AsyncKernelManager, "forked": kernels.Manager}
    starts = {name: lambda kind=kind: asyncio.run(_imports(kind)) for name, kind in both.items()}
    what = "from the start of a kernel to its imports, seconds of the wall"
    rows = [compare(what, starts, 3, time.perf_counter)]
    with _folder() as folder:
        command = [sys.executable, "-m", "protolib", "run", "--preset", "smoke", "--device", "cpu"]
        spent, wall = _spent([*command, "--run-dir", str(folder / "run")])
    print(f"the story at preset smoke: {spent:.0f} CPU s, {wall:.0f} s of the wall")
    whole = {"seconds": summary([spent]), "peak_mb": None, "gflop": None}
    told = {"what": "the story, CPU seconds of all processes", "repeats": 1, "ratios": {}}
    return [*rows, told | {"variants": {"make run PRESET=smoke": whole}}]


def _spent(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a command and of all that it starts, and seconds of the wall."""
    if sys.platform == "linux":  # who outlives the command, as the nest of its kernels, comes to us
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    known, before = psutil.Process().children(), os.times()
    subprocess.run(command, check=True, cwd=ROOT)
    for child in psutil.Process().children():
        if child not in known:
            child.wait()
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4]), after[4] - before[4]


async def _imports(kind: type) -> None:
    """Start a kernel, wait for its imports, end it."""
    manager = kind(kernel_name="python3", config=runner.KERNEL)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready()
    await client.execute_interactive(IMPORTS)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)


IMPORTS = "import protolib.experiment, protolib.teach.viz, timm, matplotlib.pyplot, torch._dynamo"
SIZES = (100, 500, 2_000, 8_000, 20_000)  # images


def growth(device: str) -> list[dict]:
    """Cost per image from 100 to 20,000: opening the cache, white filter, scores, clustering."""
    return [_of_many(n) for n in SIZES]


def _of_many(n: int) -> dict:
    """What a step of the data costs for n images of noise, 32 px square."""
    rng = np.random.default_rng(0)
    tissue = rng.integers(150, 256, (100, 32, 32, 3), np.uint8)
    blocks = np.kron(rng.integers(0, 5, (100, 4, 4)), np.ones((1, 8, 8), int)).astype(np.uint8)
    masks, other = np.tile(blocks, (n // 100, 1, 1)), np.tile(blocks[::-1] % C, (n // 100, 1, 1))
    X = rng.normal(size=(n, 128)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    with _folder() as folder:
        made = _written(folder, np.tile(tissue, (n // 100, 1, 1, 1)), masks)
        work = {
            "open the cache": lambda: _written(folder, made.images, masks),
            "white filter": lambda: regions.white_share(made.images),
            "scores": lambda: metrics.Counts.of(masks, other, C),
            "ten steps of k-means": lambda: bank.lloyd(X, X[:12], 10),
        }
        return compare(f"{n} images", work, 3) | {"images": n, "ratios": {}}


def _written(folder: Path, images: np.ndarray, masks: np.ndarray) -> patches.PatchDataset:
    """These patches in the cache: written, or opened where they are there."""

    def make(made: Path) -> dict:
        np.save(made / "images.npy", images)
        np.save(made / "masks.npy", masks)
        np.save(made / "labels.npy", np.eye(C, dtype=np.uint8)[np.arange(len(images)) % C])
        names = [str(i) for i in range(len(images))]
        return {"ids": names, "slides": names, "patients": names}

    return patches.PatchDataset(BCSS, "train", patches._cached(folder, BCSS, "train", {}, make))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


TOPICS: dict[str, Callable[[str], list[dict]]] = {
    "step": step,
    "matching": match,
    "bank": clustering,
    "inference": inference,
    "data": data,
    "story": story,
    "growth": growth,
}
