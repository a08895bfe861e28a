"""The image bank: pure patches of each class, clustered into K sub-types; their prototypes prompt the network."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protolib.files import read_json, write_json, write_npz
from protolib.regions import CLEAR, white_share

__all__ = ["CLEAR", "Bank", "build", "candidates", "lloyd", "seed_centres", "spherical_kmeans", "standardise",
           "white_share"]


def seed_centres(X: np.ndarray, K: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ under the cosine distance: K rows of X, each drawn in proportion to its distance from the nearest so far.

    X: (n, D) float, unit rows. Returns (K, D). Arthur and Vassilvitskii, SODA 2007. Notebook 02.
    """
    centres = [X[rng.integers(len(X))]]
    for _ in range(1, K):
        distance = np.clip(1 - X @ np.stack(centres).T, 0, None).min(1).astype(np.float64)  # (n,), Eq. (1)
        total = distance.sum()  # 0 when only copies of the chosen rows are left: then any row is as good
        row = rng.choice(len(X), p=distance / total) if total > 0 else rng.integers(len(X))
        centres.append(X[row])
    return np.stack(centres)


def lloyd(X: np.ndarray, centres: np.ndarray, max_iter: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """One run of spherical k-means from given centres: assign by cosine, move each centre to its mean direction.

    X: (n, D) float; centres: (K, D). Returns labels (n,) int64, the lowest index winning ties, and centres (K, D) of unit
    length. An empty cluster keeps its centre. Dhillon and Modha, Machine Learning 42, 2001; Eq. (1). Notebook 02.
    """
    for _ in range(max_iter):
        labels = (X @ centres.T).argmax(1)  # (n,)
        moved = centres.copy()
        for k in np.unique(labels):
            mean = X[labels == k].mean(0)
            moved[k] = mean / max(np.linalg.norm(mean), 1e-12)
        if np.allclose(moved, centres, rtol=1e-5, atol=1e-8):
            break
        centres = moved
    return (X @ centres.T).argmax(1), centres


def spherical_kmeans(X: np.ndarray, K: int, seed: int = 0, restarts: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """The best of several runs of spherical k-means by mean cosine to the own centre. Eq. (1), notebook 02.

    X: (n, D) float, unit rows. Returns labels (n,) int64 in 0..K-1 and centres (K, D) of unit length.
    Raises ValueError if there are fewer rows than K.
    """
    if len(X) < K:
        raise ValueError(f"k-means: {len(X)} rows cannot fill K = {K} clusters; lower K or bring more images")
    rng = np.random.default_rng(seed)
    runs = [lloyd(X, seed_centres(X, K, rng)) for _ in range(restarts)]
    return max(runs, key=lambda run: float((X * run[1][run[0]]).sum(1).mean()))


def standardise(features, mean: np.ndarray, scale: np.ndarray):
    """Subtract the mean, divide by the scale, scale to length 1: (..., D) array or tensor, float, unit rows. Notebook 02."""
    if isinstance(features, np.ndarray):
        z = (features - mean) / scale
        return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-6)
    z = (features - features.new_tensor(mean)) / features.new_tensor(scale)
    return z / z.norm(dim=-1, keepdim=True).clamp_min(1e-6)


@dataclass(frozen=True)
class Bank:
    """Prototypes and how they came about: the patches that could have been chosen and those that were. Notebook 02."""

    classes: tuple[str, ...]
    K: int
    kind: str  # "nearest_mean" or "centre"
    prototypes: np.ndarray  # (S, D) float32, unit rows, class by class
    mean: np.ndarray  # (D,) of the training features
    scale: np.ndarray  # (D,) their standard deviation
    candidates: np.ndarray  # (n,) int64 indices of the pure, not too white training patches
    clusters: np.ndarray  # (n,) sub-class 0..S-1 of each candidate
    members: tuple[tuple[str, ...], ...]  # S tuples of patch names, nearest first

    @property
    def thin(self) -> dict[str, int]:
        """Images per sub-class where there are fewer than five: a mean of so few says little. Notebook 02."""
        names = [f"{c} {k + 1}" for c in self.classes for k in range(self.K)]
        return {name: len(m) for name, m in zip(names, self.members) if len(m) < 5}

    def normalize(self, features):
        """Features (..., D), array or tensor, in the space of the prototypes: see standardise. Notebook 02."""
        return standardise(features, self.mean, self.scale)

    def save(self, folder: Path) -> None:
        """Write bank.npz (arrays) and bank.json (names), each whole or not at all. Notebook 02."""
        arrays = ("prototypes", "mean", "scale", "candidates", "clusters")
        write_npz(folder / "bank.npz", **{k: getattr(self, k) for k in arrays})
        write_json(folder / "bank.json", {k: getattr(self, k) for k in ("classes", "K", "kind", "members")})

    @classmethod
    def open(cls, folder: Path) -> "Bank":
        """Read what save wrote; raises FileNotFoundError if one of the two files is missing. Notebook 02."""
        text = read_json(folder / "bank.json")
        with np.load(folder / "bank.npz") as arrays:
            return cls(
                tuple(text["classes"]), text["K"], text["kind"], members=tuple(map(tuple, text["members"])), **arrays
            )


def candidates(dataset, K: int, white_limit: float) -> np.ndarray:
    """Indices of the patches of exactly one class that are not too white. Sec. 3.2, notebook 02.

    A class that the white filter would leave with fewer than K (airy lung, fat) keeps all its patches, and a warning says
    so. Raises ValueError if a class has fewer than K single-class patches at all; says how many it has.
    """
    pure = dataset.single_class()
    owner = dataset.labels[pure].argmax(1)
    clear = white_share(dataset.images[pure]) <= white_limit
    for c, name in enumerate(dataset.spec.classes):
        n, left = int((owner == c).sum()), int((clear & (owner == c)).sum())
        if n < K:
            advice = f"pass K = {n} or bring" if n else "without one a class has no prototype: bring"
            raise ValueError(f"bank: {name} has {n} single-class patches, K = {K} sub-classes need {K}; {advice} more")
        if left < K:
            warnings.warn(
                f"bank: only {left} of {n} single-class patches of {name} are at most {white_limit:.0%} white; "
                "all are kept", stacklevel=2
            )  # fmt: skip
            clear |= owner == c
    return pure[clear]


def build(dataset, features: np.ndarray, *, K: int, N: int, kind: str, white_limit: float, seed: int) -> Bank:
    """Build the bank: pure patches, white filter, K clusters per class, the N nearest of each, prototypes. Notebook 02.

    dataset: the training split; features: (n, D) float32 of its patches, in order. kind: "nearest_mean", the mean of the
    N images nearest to the cluster's centre (Sec. 3.4), or "centre", the centre itself (released code). Returns a Bank.
    Raises ValueError if a class has fewer candidates than K; says how many it has.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-6
    X = standardise(features, mean, scale)
    pure = candidates(dataset, K, white_limit)
    owner = dataset.labels[pure].argmax(1)
    prototypes, clusters, members = [], np.empty(len(pure), int), []
    for c in range(len(dataset.spec.classes)):
        rows = np.flatnonzero(owner == c)
        labels, centres = spherical_kmeans(X[pure[rows]], K, seed)
        clusters[rows] = c * K + labels
        for k in range(K):
            own = pure[rows[labels == k]]
            nearest = own[np.argsort(-(X[own] @ centres[k]), kind="stable")[:N]]
            members.append(tuple(dataset.ids[i] for i in nearest))
            # a cluster is empty only where a class has fewer distinct patches than K: its centre is then all there is
            prototypes.append(X[nearest].mean(0) if kind == "nearest_mean" and len(nearest) else centres[k])
    P = np.stack(prototypes)  # (S, D)
    P /= np.linalg.norm(P, axis=1, keepdims=True)
    return Bank(dataset.spec.classes, K, kind, P.astype(np.float32), mean, scale, pure, clusters, tuple(members))
