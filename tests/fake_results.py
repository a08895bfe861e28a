"""Result files as `python -m protolib ablate` writes them, made of a formula: no network was
trained."""

import copy
import zlib
from collections.abc import Sequence

import numpy as np

from protolib import files, metrics

CLASSES = ["TUM", "STR", "LYM", "NEC"]
# share of right pixels in % of each run, on average
RUNS = {
    "cam": 55,
    "pbip_stage1": 70,
    "pbip_stage1 beta=0.0": 60,
    "pbip_stage1 theta2=0.0": 61,
    "pbip_stage1 K=1": 69.8,
    "pbip_stage1 K=2": 71,
    "pbip_stage1 beta=1.0": 72,
    "pbip_stage1 N=100": 71,
    "pbip_stage1 bank='random' N=1": 58,
    "pbip_stage1 bank='random' N=8": 64,
}
TABLES = {
    "table1": {"CAM": "cam", "PBIP, stage 1": "pbip_stage1"},
    "table2": {
        "CLS": "pbip_stage1 beta=0.0",
        "CLS + FGS": "pbip_stage1 theta2=0.0",
        "CLS + FGS + BGS": "pbip_stage1",
    },
    "table3": {"CLIP, SegFormer": "pbip_stage1 encoder='clip' backbone='mit_b1'"},
    "table4": {"K = 1": "pbip_stage1 K=1", "K = 2": "pbip_stage1 K=2", "K = 3": "pbip_stage1"},
    "table6": {"image, lite0": "zero_shot", "image, CLIP": "zero_shot encoder='clip'"},
    "figure3": {
        "beta/alpha = 0": "pbip_stage1 beta=0.0",
        "beta/alpha = 0.5": "pbip_stage1",
        "beta/alpha = 1": "pbip_stage1 beta=1.0",
    },
    "figure4": {
        "random, 1 images": "pbip_stage1 bank='random' N=1",
        "random, 8 images": "pbip_stage1 bank='random' N=8",
        "clustering, 8 images": "pbip_stage1",
        "clustering, 100 images": "pbip_stage1 N=100",
    },
}
NOT_RUN = {
    "pbip_stage1 encoder='clip' backbone='mit_b1'": "no weights of clip",
    "zero_shot encoder='clip'": "no weights of clip",
}


def matrix(share: float, words: str) -> np.ndarray:
    """(5, 5) counts of one slide: 1,000 pixels a class, `share` % of them right but for a few by
    the words' hash."""
    rng = np.random.default_rng(zlib.crc32(words.encode()))
    right = np.clip(np.round(10 * share + rng.normal(0, 12, 4)), 0, 1000).astype(int)
    found = np.zeros((5, 5), int)
    for c in range(4):
        wrong = 1000 - right[c]
        found[c, :4] = wrong // 3
        found[c, (c + 1) % 4] += wrong % 3
        found[c, c] = right[c]
    found[4, :4] = 200
    return found


def boundary(matrix: np.ndarray) -> np.ndarray:
    """(2, 4) counts of bands that follow from the matrix: half of the right pixels of all."""
    return np.stack([np.diag(matrix)[:4] // 2, matrix[:4].sum(axis=1)])


def run(name: str, share: float, seed: int, slides: Sequence[str], fold: str = "") -> dict:
    """One run with its slides, and the scores that follow from them."""
    shares = {"predicted": share, "oracle": share + 8}
    matrices = {
        slide: {how: matrix(of, f"{name} {seed} {slide[1:]}") for how, of in shares.items()}
        for slide in slides
    }
    scores = {}
    for how in shares:
        counts = sum(of[how] for of in matrices.values())
        bands = sum(boundary(of[how]) for of in matrices.values())
        biou = (bands[0] / bands[1]).mean()
        protocol = {"image_labels": how, "ignore": "dropped"}
        scores[how] = metrics.scores(counts) | {"biou": biou} | protocol
    curve = {
        "loss": [1.0 + seed / 10, 0.5, 0.25 - seed / 10],
        "iou": [[0.5, 0.25, None, epoch / 10 + seed / 100] for epoch in range(3)],
    }
    counted = {
        slide: {
            how: {"matrix": found.tolist(), "boundary": boundary(found).tolist()}
            for how, found in of.items()
        }
        for slide, of in matrices.items()
    }
    return {
        "run": name,
        "method": name.split()[0],
        "settings": {},
        "seed": seed,
        "fold": fold,
        "base": "b",
        "key": f"k{seed}{fold}",
        "code": "c",
        "run_id": f"{name}/seed {seed}" + f"/fold {fold}" * bool(fold),
        "scores": scores,
        "slides": counted,
        "curve": curve,
        "seconds": 36.0 * (seed + 1),
        "hours": 0.02,
        "device": "cpu",
        "threads": 1,
        "torch": "2.15.0",
        "machine": "x86_64",
        "protolib": "0.1.0",
    }


def zero_shot(seed: int, fold: str = "") -> dict:
    each = [0.5, 0.6, 0.7, 0.8 + seed / 100]
    block = {"f1": sum(each) / 4, "per_class": each}
    made = run("zero_shot", 50, seed, ["S0"], fold)
    return made | {"scores": {"f1": block}, "slides": {}, "curve": None}


def result(
    label: str = "mosaic",
    official: bool = False,
    preset: str = "lean",
    seeds: Sequence[int] = (0, 1, 2),
    slides: int = 6,
    folds: Sequence[str] = ("",),
    gain: float = 0,
) -> dict:
    """A whole result file; slides: of each fold; gain: points of right pixels that every run has
    more."""
    names = {fold: [f"{fold}S{i}" for i in range(slides)] for fold in folds}
    places = [(seed, fold) for seed in seeds for fold in folds]
    runs = [
        run(name, share + gain, seed, names[fold], fold)
        for name, share in RUNS.items()
        for seed, fold in places
    ]
    runs += [zero_shot(seed, fold) for seed, fold in places]
    for made in runs:
        made["run_id"] = f"{label}-{preset}/{made['run_id']}"
    return {
        "label": label,
        "official": official,
        "dataset": "bcss-wsss",
        "preset": preset,
        "size": 64,
        "epochs": 3,
        "classes": CLASSES,
        "folds": list(folds),
        "patches": {fold: {"train": 390, "val": 65, "test": 130} for fold in folds},
        "tables": TABLES,
        "not_run": NOT_RUN,
        "runs": runs,
    }


def runs_of(result: dict, name: str) -> list[dict]:
    """The entries of a run, in order of seeds; to be changed in place or read."""
    return [made for made in result["runs"] if made["run"] == name]


def changed(values: dict, way: Sequence, value) -> dict:
    """A copy of nested values with one entry replaced, or dropped where value is None."""
    values = copy.deepcopy(values)
    *path, last = way
    entry = values
    for key in path:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return values


def write(folder, *results: dict) -> None:
    for made in results:
        files.write_json(folder / f"{made['label']}-{made['preset']}.json", made)
