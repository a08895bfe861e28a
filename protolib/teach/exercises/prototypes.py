"""Exercises of notebook 02: distances, clusters, prototypes."""

import numpy as np

from protolib import bank
from protolib.teach.exercises.judge import exercise

rng = np.random.default_rng(0)


def unit(rows, axis=-1):
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=axis, keepdims=True)


@exercise(
    "bring every row to length 1 first: then a cosine is a sum of products",
    inputs=[
        (np.array([[3.0, 4.0], [1.0, 0.0], [-2.0, 0.5]]), np.array([[2.0, 0.0], [0.0, 5.0]])),
        (rng.normal(size=(4, 3)), 7 * rng.normal(size=(5, 3))),
        (rng.normal(size=(3, 3)), rng.normal(size=(3, 3))),  # square: a transpose too few passes
        (rng.normal(size=(4, 6)).T, rng.normal(size=(4, 2)).T),  # not contiguous
        (rng.normal(size=(1, 8)).astype(np.float32), rng.normal(size=(2, 8)).astype(np.float32)),
        (rng.normal(size=(4, 3)) / 100, rng.normal(size=(2, 3))),  # short rows
    ],
    slips={
        "this is the similarity; the distance is 1 minus it": lambda a, b: unit(a) @ unit(b).T,
        "divide each row by its length before the product: the rows here are not of length 1": (
            lambda a, b: 1 - a @ b.T
        ),
        "the rows of a still have their own length; divide them by it too": lambda a, b: (
            1 - a @ unit(b).T
        ),
        "the rows of b still have their own length; divide them by it too": lambda a, b: (
            1 - unit(a) @ b.T
        ),
        "this is the Euclidean distance; the cosine looks at directions only": lambda a, b: (
            np.linalg.norm(a[:, None] - b, axis=2)
        ),
        "this is the Euclidean distance of the directions; asked is 1 minus the cosine": (
            lambda a, b: np.linalg.norm(unit(a)[:, None] - unit(b), axis=2)
        ),
        "rows and columns are swapped: one row per row of a, one column per row of b": (
            lambda a, b: 1 - unit(b) @ unit(a).T
        ),
        "the length of a row is taken along axis 1; this divides columns": lambda a, b: (
            1 - unit(a, 0) @ unit(b, 0).T
        ),
        "divide by the lengths, the root of the sum of squares, not by the sum of squares": (
            lambda a, b: 1 - a @ b.T / np.outer((a**2).sum(1), (b**2).sum(1))
        ),
        "an opposite direction is at distance 2: no absolute value, nothing cut at 1": (
            lambda a, b: 1 - abs(unit(a) @ unit(b).T)
        ),
        "one number for every pair of rows, (n, K): this takes the mean": lambda a, b: (
            1 - (unit(a) @ unit(b).T).mean()
        ),
        "the rows of b meet the rows of a as columns: b.T": lambda a, b: 1 - unit(a) @ unit(b),
        "each row has its own length; this divides by the length of the whole array": (
            lambda a, b: 1 - a @ b.T / (np.linalg.norm(a) * np.linalg.norm(b))
        ),
        "this is the angle; 1 - cosine is asked": lambda a, b: np.arccos(unit(a) @ unit(b).T),
        "an opposite direction is at distance 2: nothing is cut at 1": lambda a, b: np.clip(
            1 - unit(a) @ unit(b).T, 0, 1
        ),
        "the length is the root of the sum of squares, not the sum of absolute values": (
            lambda a, b: 1 - a @ b.T / np.outer(abs(a).sum(1), abs(b).sum(1))
        ),
        "the rows are compared as they are: taking off their mean makes it a correlation": (
            lambda a, b: (
                1 - unit(a - a.mean(1, keepdims=True)) @ unit(b - b.mean(1, keepdims=True)).T
            )
        ),
        "the sign: 1 MINUS the cosine": lambda a, b: 1 + unit(a) @ unit(b).T,
        "the cosine itself, not its square": lambda a, b: 1 - (unit(a) @ unit(b).T) ** 2,
        "the length is the root of the SUM of squares, not of their mean": lambda a, b: (
            1 - a.shape[1] * unit(a) @ unit(b).T
        ),
    },
    only={
        "not for short rows: whatever is added to a length must stay far below it": (5,),
    },
)
def check_cosine_distance(a, b):
    """1 - cosine of every row of a (n, D) with every row of b (K, D), Eq. (1). Right answer and
    check; notebook 02."""
    return 1 - unit(a) @ unit(b).T


def moved(X, centres, empty=None, length=True, pick=np.argmax, move=np.mean, least=1):
    """One step of k-means with the slips of the exercise; empty: what a centre without rows
    becomes, itself where None is given; least: how many rows move a centre."""
    labels, made = pick(X @ centres.T, axis=1), []
    for k, centre in enumerate(centres):
        own = X[labels == k]
        if len(own) >= least:
            mean = move(own, axis=0)
            made.append(mean / np.linalg.norm(mean) if length else mean)
        else:
            made.append(centre if empty is None else np.full_like(centre, empty))
    return np.stack(made)


def in_turn(X, centres):
    """Each centre moves before the next one takes its rows."""
    for k in range(len(centres)):
        centres = np.where(np.arange(len(centres))[:, None] == k, moved(X, centres), centres)
    return centres


def refilled(X, centres):
    """A centre without rows becomes the row that is farthest from all centres."""
    made = moved(X, centres, empty=np.nan)
    return np.where(np.isnan(made), X[(X @ centres.T).max(1).argmin()], made)


ANGLE = np.deg2rad([0, 20, 40, 100, 110, 130])


@exercise(
    "two parts: which centre is nearest to each row, then the mean of each centre's rows",
    inputs=[
        # no row is nearest to the last centre
        (
            np.stack([np.cos(ANGLE), np.sin(ANGLE)], axis=1),
            np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        ),
        (unit(rng.normal(size=(30, 5))), unit(rng.normal(size=(4, 5)))),
        (unit(rng.normal(size=(5, 12)).T.copy()), unit(rng.normal(size=(1, 5)))),
        (
            unit(rng.normal(size=(9, 3))).astype(np.float32),
            unit(rng.normal(size=(3, 3))).astype(np.float32),
        ),
    ],
    slips={
        "a mean of unit vectors is shorter than 1: scale every moved centre back to length 1": (
            lambda X, centres: moved(X, centres, length=False)
        ),
        "the mean of no rows is NaN: a centre without rows stays where it is": lambda X, centres: (
            moved(X, centres, empty=np.nan)
        ),
        "two slips: scale the means to length 1; leave a centre without rows alone": (
            lambda X, centres: moved(X, centres, empty=np.nan, length=False)
        ),
        "a centre without rows stays where it is; it does not become 0": lambda X, centres: moved(
            X, centres, empty=0.0
        ),
        "two slips: scale the means to length 1; a centre without rows stays": lambda X, centres: (
            moved(X, centres, empty=0.0, length=False)
        ),
        "nothing moved: after the assignment each centre becomes the mean direction of its rows": (
            lambda X, centres: centres
        ),
        "the nearest centre has the LARGEST cosine": lambda X, centres: moved(
            X, centres, pick=np.argmin
        ),
        "the MEAN of the rows moves a centre, not their median": lambda X, centres: moved(
            X, centres, move=np.median
        ),
        "these are the sums of the rows; their direction is right, their length is not 1": (
            lambda X, centres: moved(X, centres, move=np.sum, length=False)
        ),
        "these are the labels; the moved centres are asked": lambda X, centres: (
            X @ centres.T
        ).argmax(1),
        "each row goes to ONE centre: here all rows move every centre": lambda X, centres: np.stack(
            [unit(X.mean(0))] * len(centres)
        ),
        "one step only: here the assignment is repeated until nothing moves": (
            lambda X, centres: bank.lloyd(X, centres).centres
        ),
        "a centre moves to the MEAN of its rows, not to the row nearest to it": (
            lambda X, centres: X[(X @ centres.T).argmax(0)]
        ),
        "each centre has a length of its own; this divides by the length of the whole array": (
            lambda X, centres: (lambda made: made / np.linalg.norm(made))(
                moved(X, centres, length=False)
            )
        ),
        "the old centre is none of the rows: it does not belong into the mean": (
            lambda X, centres: unit(np.eye(len(centres))[(X @ centres.T).argmax(1)].T @ X + centres)
        ),
        "a centre without rows stays in the result: (K, D), whatever is empty": (
            lambda X, centres: moved(X, centres)[np.unique((X @ centres.T).argmax(1))]
        ),
        "the nearest centre has the largest cosine, not the largest absolute value": (
            lambda X, centres: moved(X, centres, pick=lambda s, axis: abs(s).argmax(axis))
        ),
        "a centre with a single row moves to it": lambda X, centres: moved(X, centres, least=2),
        "one step only: here are two": lambda X, centres: moved(X, moved(X, centres)),
        "all rows are assigned first, then all centres move: here one moves after the other": (
            in_turn
        ),
        "a centre without rows stays where it is; it does not jump to a row": refilled,
        "the mean of its rows, not the one of them that is nearest": lambda X, centres: np.stack(
            [
                X[labels == k][(X[labels == k] @ centre).argmax()]
                if (labels == k).any()
                else centre
                for labels in [(X @ centres.T).argmax(1)]
                for k, centre in enumerate(centres)
            ]
        ),
        "a centre moves all the way: this is halfway": lambda X, centres: unit(
            centres + moved(X, centres)
        ),
        "each row goes to ONE centre, whole: no softmax": lambda X, centres: unit(
            (np.exp(X @ centres.T) / np.exp(X @ centres.T).sum(1, keepdims=True)).T @ X
        ),
        "the length of a centre is along axis 1; this divides columns": lambda X, centres: unit(
            moved(X, centres, length=False), 0
        ),
    },
    points=3,
    only={
        "not where a centre has no rows: it stays where it is": (0,),
    },
)
def check_lloyd_step(X, centres):
    """One step of spherical k-means: unit rows (n, D) and centres (K, D) -> the moved centres
    (K, D) of length 1, as bank.lloyd. Right answer and check; notebook 02."""
    return bank.lloyd(X, centres, max_iter=1).centres


def prototype(X, centre, N, length=True, order=1):
    """The mean of N rows by their order from the centre, of length 1 or not."""
    mean = X[np.argsort(-order * (X @ centre), kind="stable")[:N]].mean(0)
    return unit(mean) if length else mean


@exercise(
    "sort the rows by their cosine with the centre; how do you take the N with the largest?",
    inputs=[
        (unit(rng.normal(size=(8, 3))), unit(rng.normal(size=3)), 3),
        (unit(rng.normal(size=(20, 6))), unit(rng.normal(size=6)), 5),
        (unit(rng.normal(size=(6, 4))), unit(rng.normal(size=4)), 1),
        (unit(rng.normal(size=(4, 5))), unit(rng.normal(size=5)), 10),  # fewer rows than N
        (np.asfortranarray(unit(rng.normal(size=(9, 2)))), unit(rng.normal(size=2)), 4),
    ],
    slips={
        "a mean of unit rows is shorter than 1: scale the prototype to length 1": (
            lambda X, centre, N: prototype(X, centre, N, length=False)
        ),
        "these are the N farthest: argsort begins with the smallest cosine": (
            lambda X, centre, N: prototype(X, centre, N, order=-1)
        ),
        "two slips: the N farthest were taken, and the mean is not of length 1": (
            lambda X, centre, N: prototype(X, centre, N, length=False, order=-1)
        ),
        "this is the mean of all rows; only the N nearest count": lambda X, centre, N: unit(
            X.mean(0)
        ),
        "these are the first N rows, wherever they lie: sort by cosine first": (
            lambda X, centre, N: unit(X[:N].mean(0))
        ),
        "this is the nearest row alone; take the mean of N": lambda X, centre, N: X[
            (X @ centre).argmax()
        ],
        "these are the indices of the nearest rows; take the mean of the rows": (
            lambda X, centre, N: np.argsort(-(X @ centre), kind="stable")[:N]
        ),
        "these are the N nearest rows; take their mean": lambda X, centre, N: X[
            np.argsort(-(X @ centre), kind="stable")[:N]
        ],
        "this is the centre itself, as in the released code; asked is the mean of the N nearest": (
            lambda X, centre, N: centre
        ),
        "the centre is no patch: it does not belong into the mean": lambda X, centre, N: unit(
            np.vstack([X[np.argsort(-(X @ centre), kind="stable")[:N]], centre]).mean(0)
        ),
        "a row that points the other way is far, not near: no absolute value": (
            lambda X, centre, N: unit(X[np.argsort(-abs(X @ centre), kind="stable")[:N]].mean(0))
        ),
        "one row too many: the first N are [:N]": lambda X, centre, N: prototype(X, centre, N + 1),
        "each of the N counts the same: no weights in the mean": lambda X, centre, N: unit(
            (np.sort(X @ centre)[::-1][:N, None] * X[np.argsort(-(X @ centre))[:N]]).sum(0)
        ),
        "one row too few: the last N are [-N:], without an end": lambda X, centre, N: unit(
            X[np.argsort(X @ centre)[-N:-1]].mean(0)
        ),
        "one row too few: the first N are [:N]": lambda X, centre, N: prototype(X, centre, N - 1),
        "near is what has a large cosine, not a small sum of absolute differences": (
            lambda X, centre, N: unit(X[np.argsort(abs(X - centre).sum(1))[:N]].mean(0))
        ),
        "the direction of the mean itself, not the row that is nearest to it": (
            lambda X, centre, N: X[(X @ prototype(X, centre, N)).argmax()]
        ),
        "the mean, not the median": lambda X, centre, N: unit(
            np.median(X[np.argsort(-(X @ centre))[:N]], axis=0)
        ),
        "the nearest row counts as well: the first N are [:N]": lambda X, centre, N: unit(
            X[np.argsort(-(X @ centre), kind="stable")[1 : N + 1]].mean(0)
        ),
        "length 1 is the root of the sum of squares, not the sum of absolute values": (
            lambda X, centre, N: (lambda mean: mean / abs(mean).sum())(prototype(X, centre, N))
        ),
        "argsort gives the rows in their order, not the place of each row": lambda X, centre, N: (
            unit(X[np.argsort(-(X @ centre), kind="stable") < N].mean(0))
        ),
    },
    points=2,
    only={
        "not where there are fewer rows than N: take all of them then": (3,),
        "not for N = 1: the nearest row alone": (2,),
    },
)
def check_nearest_mean(X, centre, N):
    """The mean direction (D,) of the N rows of X (n, D) with the largest cosine to the centre (D,),
    of length 1. Right answer and check; notebook 02."""
    return prototype(X, centre, N)
