"""The image bank: pure patches of each class, clustered into K sub-types; their prototypes prompt
the network."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protolib.data.regions import white_share
from protolib.files import read_json, read_npz, write_json, write_npz
from protolib.presets import Preset


def seed_centres(X: np.ndarray, K: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ under the cosine distance: K rows of X, each drawn in proportion to its distance
    from the nearest so far.

    X: (n, D) float, unit rows. Returns (K, D). Arthur and Vassilvitskii, SODA 2007. Notebook 02.
    """
    centres = [X[rng.integers(len(X))]]  # the first one is any row
    for _ in range(1, K):
        # (n,), Eq. (1)
        distance = np.clip(1 - X @ np.stack(centres).T, 0, None).min(1).astype(np.float64)
        # 0 when only copies of the chosen rows are left: then any row is as good
        total = distance.sum()
        row = rng.choice(len(X), p=distance / total) if total > 0 else rng.integers(len(X))
        centres.append(X[row])
    return np.stack(centres)


class Clustering(NamedTuple):
    """One run of k-means: of the last assignment labels (n,) int64 and cosines (n, K) to the
    centres before it; the centres (K, D) after it, of unit length; the number of assignments."""

    labels: np.ndarray
    cosines: np.ndarray
    centres: np.ndarray
    steps: int


def lloyd(X: np.ndarray, centres: np.ndarray, max_iter: int = 100) -> Clustering:
    """One run of spherical k-means from given centres: assign by cosine, move each centre to its
    mean direction.

    X: (n, D) float, rows of any length: longer ones weigh more in a mean; centres: (K, D). The
    lowest index wins a tie, an empty cluster keeps its centre. Dhillon and Modha, Machine Learning
    42, 2001; Eq. (1). Notebook 02.
    """

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    directions, steps = unit(X), 0
    while steps < max_iter:
        steps += 1
        cosines = directions @ unit(centres).T  # (n, K)
        labels, before = cosines.argmax(1), centres  # (n,): the lowest index wins a tie
        centres = before.copy()
        for k in np.unique(labels):
            mean = X[labels == k].mean(0)
            centres[k] = mean / max(np.linalg.norm(mean), 1e-12)  # (D,), back onto the sphere
        if np.allclose(before, centres, rtol=1e-5, atol=1e-8):
            break
    return Clustering(labels, cosines, centres, steps)


def random_rows(X: np.ndarray, K: int, seed: int) -> np.ndarray:
    """K distinct rows of X, those that the released code draws when seed is 0 (its own seed is 42).
    Notebook 02."""
    return X[np.random.RandomState(42 + seed).choice(len(X), K, replace=False)]


def spherical_kmeans(
    X: np.ndarray, K: int, seed: int = 0, restarts: int = 20, start: str = "plusplus"
) -> Clustering:
    """The best of several runs of spherical k-means by mean cosine to the own centre. Eq. (1),
    notebook 02.

    X: (n, D) float, unit rows; start: "plusplus", see seed_centres, or "rows", see random_rows: the
    same in every restart. Raises ValueError if there are fewer rows than K.
    """
    if len(X) < K:
        raise ValueError(
            f"k-means: {len(X)} rows cannot fill K = {K} clusters; lower K or bring more images"
        )
    rng = np.random.default_rng(seed)
    draw = {"plusplus": lambda: seed_centres(X, K, rng), "rows": lambda: random_rows(X, K, seed)}[
        start
    ]
    return max(
        (lloyd(X, draw()) for _ in range(restarts)),
        key=lambda run: float(run.cosines.max(1).mean()),
    )


class Space(NamedTuple):
    """The space in which features and prototypes are compared: the origin (D,) and what features
    are multiplied by, (D,) channel by channel or a matrix (D, D)."""

    origin: np.ndarray
    transform: np.ndarray

    def unit(self, features):
        """Features (..., D), array or tensor, in this space and of length 1: float, unit rows.
        Notebook 02."""
        if isinstance(features, np.ndarray):
            z = features - self.origin
            z = z @ self.transform if self.transform.ndim == 2 else z * self.transform
            return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-6)
        origin, transform = (features.new_tensor(part) for part in self)
        z = features - origin
        z = z @ transform if transform.ndim == 2 else z * transform
        return z / z.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def raw_space(features: np.ndarray) -> Space:
    """The encoder's own space, as the paper compares: nothing is moved or scaled. Eq. (1);
    notebook 02."""
    D = features.shape[1]
    return Space(np.zeros(D, np.float32), np.ones(D, np.float32))


def standardised_space(features: np.ndarray) -> Space:
    """Each channel to mean 0 and scale 1 over the training set: features (n, D). Notebook 02."""
    return Space(features.mean(0), 1 / (features.std(0) + 1e-6))


def wccn_space(features: np.ndarray, owners: np.ndarray, shrinkage: float) -> Space:
    """Within-class covariance normalisation: directions in which one class varies (slide, stain)
    count less, those that tell classes apart count more. Hatch, Kajarekar and Stolcke, Interspeech
    2006; notebook 02.

    features: (n, D) of the bank's candidates; owners: (n,) the class of each; shrinkage: how many
    times the mean variance is added to every direction, for n is small beside D. The origin is the
    mean of the class means; the matrix is W^-1/2, W the covariance within the classes.
    """
    classes = np.unique(owners)
    means = np.stack([features[owners == c].mean(0) for c in classes]).astype(np.float64)  # (C, D)
    within = features - means[np.searchsorted(classes, owners)]  # (n, D) float64
    W = within.T @ within / len(within)  # (D, D)
    # fewer patches than directions: without this W has no inverse
    W += shrinkage * np.trace(W) / len(W) * np.eye(len(W))
    values, vectors = np.linalg.eigh(W)  # (D,), (D, D): W is symmetric
    inverse_root = (vectors / np.sqrt(values)) @ vectors.T  # (D, D)
    return Space(means.mean(0).astype(np.float32), inverse_root.astype(np.float32))


@dataclass(frozen=True)
class Bank:
    """Prototypes and how they came about: the patches that could have been chosen and those that
    were. Notebook 02."""

    classes: tuple[str, ...]
    K: int
    kind: str  # "nearest_mean", "random_mean" or "centre"
    prototypes: np.ndarray  # (S, D) float32, unit rows, class by class
    space: Space  # in which they are compared
    candidates: np.ndarray  # (n,) int64 indices of the training patches that were clustered
    clusters: np.ndarray  # (n,) sub-class 0..S-1 of each candidate
    members: tuple[tuple[str, ...], ...]  # S tuples of patch names, nearest first

    @property
    def thin(self) -> dict[str, int]:
        """Images per sub-class where there are fewer than five: a mean of so few says little.
        Notebook 02."""
        names = [f"{c} {k + 1}" for c in self.classes for k in range(self.K)]
        return {name: len(m) for name, m in zip(names, self.members) if len(m) < 5}

    def pure(self) -> dict[str, int]:
        """Patches of each class that the bank stands on. Notebook 02."""
        owners = self.clusters // self.K
        return {c: int((owners == i).sum()) for i, c in enumerate(self.classes)}

    def normalize(self, features):
        """Features (..., D), array or tensor, in the space of the prototypes, unit rows.
        Notebook 02."""
        return self.space.unit(features)

    def save(self, folder: Path) -> None:
        """Write bank.npz (arrays) and bank.json (names), each whole or not at all. Notebook 02."""
        arrays = {k: getattr(self, k) for k in ("prototypes", "candidates", "clusters")}
        write_npz(folder / "bank.npz", **arrays, **self.space._asdict())
        names = ("classes", "K", "kind", "members")
        write_json(folder / "bank.json", {k: getattr(self, k) for k in names})

    @classmethod
    def open(cls, folder: Path) -> "Bank":
        """Read what save wrote; raises FileNotFoundError if one of the two files is missing, and
        ValueError if one is damaged. Notebook 02."""
        kinds = {"classes": list, "K": int, "kind": str, "members": list}
        names, arrays = read_json(folder / "bank.json", kinds), read_npz(folder / "bank.npz")
        return cls(
            classes=tuple(names["classes"]),
            K=names["K"],
            kind=names["kind"],
            space=Space(arrays.pop("origin"), arrays.pop("transform")),
            members=tuple(map(tuple, names["members"])),
            **arrays,
        )


def candidates(
    dataset, K: int, white_limit: float, single_class: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Patches that show one class alone and are not too white, and the class of each. Sec. 3.2,
    notebook 02.

    Returns indices and classes, (n,) int64 each. single_class False: every patch, once for each of
    its classes. A class that the white filter would leave with fewer than K (airy lung, fat) keeps
    all its patches, and a warning says so. Raises ValueError if a class has fewer than K patches at
    all; says how many it has.
    """
    kind = "single-class patches" if single_class else "patches"
    shown = (
        dataset.labels * (dataset.labels.sum(1, keepdims=True) == 1)
        if single_class
        else dataset.labels
    )
    patch, owner = np.nonzero(shown)
    clear = white_share(dataset.images, patch) <= white_limit
    for c, name in enumerate(dataset.spec.classes):
        n, left = int((owner == c).sum()), int((clear & (owner == c)).sum())
        if n < K:
            advice = (
                f"pass K = {n} or bring" if n else "without one a class has no prototype: bring"
            )
            raise ValueError(
                f"bank: {name} has {n} {kind}, K = {K} sub-classes need {K}; {advice} more"
            )
        if left < K:
            warnings.warn(
                f"bank: only {left} of {n} {kind} of {name} are at most {white_limit:.0%} white; "
                "all are kept",
                stacklevel=2,
            )
            clear |= owner == c
    return patch[clear], owner[clear]


def build(
    dataset,
    features: np.ndarray,
    p: Preset,
    seed: int,
    cluster_features: np.ndarray | None = None,
) -> Bank:
    """Build the bank: pure patches, white filter, their space, K clusters per class, the N nearest
    of each, prototypes. Notebook 02.

    dataset: the training split; features: (n, D) float32 of its patches, in order;
    cluster_features: (n, D') of another encoder, where the clustering looks through that (Eq. 1),
    else the same. p.prototypes "nearest_mean": the mean of the N images nearest to the cluster's
    centre (Sec. 3.4), "random_mean", of N drawn from the class (Figure 4), or "centre", the mean
    direction of the whole cluster (released code). Raises ValueError if a class has fewer
    candidates than K, or than N where they are drawn; says how many it has.
    """
    pure, owner = candidates(dataset, p.K, p.white_limit, p.single_class)
    if p.normalise == "wccn":
        space = wccn_space(features[pure], owner, p.shrinkage)
    else:
        make = standardised_space if p.normalise == "standardise" else raw_space
        space = make(features)
    X = space.unit(features)  # (n, D)
    if cluster_features is not None:  # Z: what the clustering sees
        Z = cluster_features / np.linalg.norm(cluster_features, axis=1, keepdims=True)
    elif p.normalise == "wccn":  # it evens out how a class varies, and that is what sub-types are
        Z = standardised_space(features).unit(features)
    else:
        Z = X
    prototypes, clusters, members = [], np.empty(len(pure), int), []
    for c, name in enumerate(dataset.spec.classes):
        rows = np.flatnonzero(owner == c)  # of the candidates
        own = pure[rows]  # of the training split
        if p.prototypes == "random_mean" and len(own) < p.N:
            raise ValueError(
                f"bank: {name} has {len(own)} candidates, N = {p.N} are to be drawn; lower N"
            )
        run = spherical_kmeans(Z[own], p.K, seed, p.restarts, p.kmeans_start)
        clusters[rows] = c * p.K + run.labels
        rng = np.random.default_rng([seed, c])  # a class's draws depend on no other class
        for k in range(p.K):
            nearest, whole = nearest_of(Z[own], run, k)
            nearest = own[nearest[: p.N]]
            if p.prototypes == "random_mean":  # of the class, whatever its clusters
                nearest = rng.choice(own, p.N, replace=False)
            members.append(tuple(dataset.ids[i] for i in nearest))
            chosen = own[whole] if p.prototypes == "centre" else nearest
            prototypes.append(X[chosen].mean(0))
    P = np.stack(prototypes)  # (S, D)
    P /= np.linalg.norm(P, axis=1, keepdims=True)
    return Bank(
        classes=dataset.spec.classes,
        K=p.K,
        kind=p.prototypes,
        prototypes=P.astype(np.float32),
        space=space,
        candidates=pure,
        clusters=clusters,
        members=tuple(members),
    )


def with_text(bank: Bank, text: np.ndarray, share: float) -> Bank:
    """The bank with a share of text in each prototype: unit(share * t + (1 - share) * v), t the
    class's text and v the image prototype, both of unit length. ProBAG, 2026 (arXiv 2608.11765),
    which blends with share .6.

    text: (C, D) float32 unit rows, in the joint space of one vision-language encoder. There the
    blend is made, before anything normalises channels or covariance: a text stands so far from
    every image that a space fitted to images would give all classes the same text. Raises
    ValueError for a bank in another space or of another width.
    """
    moved = bank.space.origin.any() or (bank.space.transform != 1).any()
    if moved or text.shape != (len(bank.classes), bank.prototypes.shape[1]):
        raise ValueError(
            f"text {text.shape} and a bank of {len(bank.classes)} classes, "
            f"{bank.prototypes.shape[1]} wide: expected (C, D) of both in the encoder's own space; "
            "choose normalise = 'none' and one encoder for both"
        )
    P = share * np.repeat(text, bank.K, axis=0) + (1 - share) * bank.prototypes  # (S, D)
    P /= np.linalg.norm(P, axis=1, keepdims=True)
    return replace(bank, prototypes=P.astype(np.float32))


def nearest_of(Z: np.ndarray, run: Clustering, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of cluster k from the nearest to its centre on, and in their own order: (m,) int64 each.
    Sec. 3.2, notebook 02.

    Z: (n, D) unit rows that were clustered. A cluster that is empty, as where a class has fewer
    distinct patches than K, gives the one row nearest to its centre.
    """
    closeness = Z @ run.centres[k]  # (n,)
    own = np.flatnonzero(run.labels == k)
    if not len(own):
        own = closeness.argmax(keepdims=True)
    return own[np.argsort(-closeness[own], kind="stable")], own
