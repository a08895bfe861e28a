"""Every check says "solved" to a right answer written another way, and names the slip of a wrong
one."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from protolib.teach import exercises


def cosine_distance(a, b):
    return np.array(
        [[1 - np.dot(x, y) / math.sqrt(np.dot(x, x) * np.dot(y, y)) for y in b] for x in a]
    )


def lloyd_step(X, centres):
    labels = [max(range(len(centres)), key=lambda k: float(x @ centres[k])) for x in X]
    moved = []
    for k, centre in enumerate(centres):
        total = sum((x for x, label in zip(X, labels) if label == k), np.zeros_like(centre))
        moved.append(total / np.linalg.norm(total) if total.any() else centre)
    return np.stack(moved)


def lloyd_means(X, centres, empty=None):
    """Slips of lloyd_step: means not of length 1, NaN where there are no rows."""
    labels = (X @ centres.T).argmax(1)
    with np.errstate(invalid="ignore"):
        sums = np.stack([X[labels == k].sum(0) for k in range(len(centres))])
        means = sums / np.bincount(labels, minlength=len(centres))[:, None]
    return means if empty is None else np.where(np.isnan(means), empty, means)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def adaptive_threshold(maps, delta):
    return torch.stack([(m >= delta * m.max()).float() for m in maps])


def foreground_loss(fg, prototypes, cls, K, tau):
    s = [float(fg @ p) for p in prototypes]
    own = sum(s[k] for k in range(len(s)) if k // K == cls)
    gap = (sum(s) - 2 * own) / tau  # (s_FB - s_FF) / tau
    return max(gap, 0) + math.log1p(math.exp(-abs(gap)))


def exponential_loss(fg, prototypes, cls, K, tau, sums=True, swap=False):
    s = (prototypes @ fg).view(-1, K)
    own, others = s[cls], s[torch.arange(len(s)) != cls].flatten()
    if swap:
        own, others = others, own
    if not sums:  # exp before the sum
        return -((own / tau).logsumexp(0) - (torch.cat([own, others]) / tau).logsumexp(0))
    a, b = torch.exp(own.sum() / tau), torch.exp(others.sum() / tau)
    return -torch.log(a / (a + b))


def gap(fg, prototypes, cls, K, tau):
    s = (prototypes @ fg).view(-1, K).sum(1)
    return (s.sum() - 2 * s[cls]) / tau


def siblings_loss(fg, prototypes, cls, K, tau):
    s = prototypes @ fg
    first = s[cls * K]
    return F.softplus((s.sum() - 2 * first) / tau)


def image_label(mask, C):
    return [int(c in set(mask.flatten().tolist())) for c in range(C)]


def white(pixel, every=all):
    return every(-math.log((int(v) + 1) / 256) < 0.15 for v in pixel)


def white_share(images, every=all):
    return [
        sum(white(p, every) for row in image for p in row) / image[..., 0].size for image in images
    ]


def present_classes(scores, share):
    wins = [[int((image.argmax(0) == c).sum()) for c in range(len(image))] for image in scores]
    return [[n >= share * sum(row) for n in row] for row in wins]


def fuse_levels(maps, weights, size, **how):
    return sum(
        F.interpolate(w * m, size, **({"mode": "bilinear"} | how)) for m, w in zip(maps, weights)
    )


def iou(matrix, ignore_row=False, absent=math.nan):
    C = len(matrix) - 1
    matrix = matrix if ignore_row else matrix[:C]
    unions = [matrix[c].sum() + matrix[:, c].sum() - matrix[c, c] for c in range(C)]
    return [matrix[c, c] / u if u else absent for c, u in enumerate(unions)]


def recall(matrix):
    return [row[c] / row.sum() if row.any() else math.nan for c, row in enumerate(matrix[:-1])]


def interval(ours, theirs, t=3.182446305284263, share=4, ddof=1):
    """t: of 95 % and 3 degrees of freedom, from a table."""
    d = np.subtract(ours, theirs)
    half = t * d.std(ddof=ddof) / math.sqrt(share)
    return d.mean() - half, d.mean() + half


def unpaired(a, b):
    half = 3.182446305284263 * math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 4)
    return (a - b).mean() - half, (a - b).mean() + half


SOLVED = [
    (exercises.check_image_label, image_label),
    (exercises.check_white_share, white_share),
    (exercises.check_present_classes, present_classes),
    (exercises.check_cosine_distance, cosine_distance),
    (exercises.check_lloyd_step, lloyd_step),
    (exercises.check_adaptive_threshold, adaptive_threshold),
    (exercises.check_foreground_loss, foreground_loss),
    (exercises.check_fuse_levels, fuse_levels),
    (exercises.check_iou_from_confusion, iou),
    (exercises.check_paired_interval, interval),
]

SLIPS = [
    (exercises.check_paired_interval, lambda a, b: interval(a, b, t=1.96), "many seeds"),
    (exercises.check_paired_interval, lambda a, b: interval(a, b, share=1), "divide by sqrt"),
    (exercises.check_paired_interval, lambda a, b: interval(a, b, ddof=0), "n - 1"),
    (exercises.check_paired_interval, unpaired, "paired"),
    (exercises.check_paired_interval, lambda a, b: interval(b, a), "the sign"),
    (exercises.check_image_label, lambda m, C: image_label(m, C + 1), "ignore is no class"),
    (exercises.check_image_label, lambda m, C: [(m == c).sum() for c in range(C)], "counts pixels"),
    (
        exercises.check_image_label,
        lambda m, C: np.eye(C)[np.bincount(m.flatten())[:C].argmax()],
        "largest only",
    ),
    (exercises.check_image_label, lambda m, C: np.unique(m[m < C]), "indices of the classes"),
    (exercises.check_white_share, lambda x: white_share(x, every=any), "one clear channel"),
    (exercises.check_white_share, lambda x: np.multiply(white_share(x), 4), "counts pixels"),
    (exercises.check_white_share, lambda x: np.mean(white_share(x)), "one share for each patch"),
    (exercises.check_white_share, lambda x: 1 - np.array(white_share(x)), "share of tissue"),
    (exercises.check_present_classes, lambda s, a: present_classes(s, a + 1e-6), ">="),
    (
        exercises.check_present_classes,
        lambda s, a: F.one_hot(s.argmax(1), 3).float().mean((1, 2)),
        "yes or no",
    ),
    (exercises.check_present_classes, lambda s, a: present_classes(s, 1e-6), "one pixel"),
    (exercises.check_present_classes, lambda s, a: s.mean((2, 3)) >= a, "mean of the scores"),
    (exercises.check_present_classes, lambda s, a: np.transpose(present_classes(s, a)), "swapped"),
    (exercises.check_cosine_distance, lambda a, b: unit(a) @ unit(b).T, "1 minus"),
    (exercises.check_cosine_distance, lambda a, b: 1 - a @ b.T, "by its length"),
    (exercises.check_cosine_distance, lambda a, b: 1 - a @ unit(b).T, "rows of a"),
    (exercises.check_cosine_distance, lambda a, b: 1 - unit(a) @ b.T, "rows of b"),
    (
        exercises.check_cosine_distance,
        lambda a, b: np.sqrt(((a[:, None] - b) ** 2).sum(2)),
        "Euclidean",
    ),
    (exercises.check_cosine_distance, lambda a, b: cosine_distance(b, a), "swapped"),
    (exercises.check_lloyd_step, lambda X, c: lloyd_means(X, c, empty=c), "length 1"),
    (exercises.check_lloyd_step, lambda X, c: lloyd_means(X, c), "two slips"),
    (exercises.check_lloyd_step, lambda X, c: unit(lloyd_means(X, c)), "NaN"),
    (
        exercises.check_lloyd_step,
        lambda X, c: np.nan_to_num(unit(lloyd_means(X, c))),
        "without rows",
    ),
    (exercises.check_lloyd_step, lambda X, c: c, "nothing moved"),
    (exercises.check_adaptive_threshold, lambda m, d: m >= d * m.max(), "each map's own"),
    (exercises.check_adaptive_threshold, lambda m, d: m > d * m.amax((1, 2), keepdim=True), ">="),
    (exercises.check_adaptive_threshold, lambda m, d: m >= d, "not delta itself"),
    (
        exercises.check_adaptive_threshold,
        lambda m, d: m >= d * m.mean((1, 2), keepdim=True),
        "mean",
    ),
    (
        exercises.check_adaptive_threshold,
        lambda m, d: m < d * m.amax((1, 2), keepdim=True),
        "swapped",
    ),
    (exercises.check_adaptive_threshold, lambda m, d: adaptive_threshold(m, d) * m, "yes or no"),
    (exercises.check_foreground_loss, exponential_loss, "overflows"),
    (
        exercises.check_foreground_loss,
        lambda f, P, c, K, t: foreground_loss(f, P, c, K, 1),
        "divide the similarities",
    ),
    (
        exercises.check_foreground_loss,
        lambda f, P, c, K, t: foreground_loss(f, P, c, K, K * t),
        "means",
    ),
    (
        exercises.check_foreground_loss,
        lambda *a: exponential_loss(*a, sums=False),
        "exp comes first",
    ),
    (
        exercises.check_foreground_loss,
        lambda f, P, c, K, t: foreground_loss(f, P, 1 - c, K, t),
        "swapped",
    ),
    (exercises.check_foreground_loss, gap, "softplus"),
    (exercises.check_foreground_loss, siblings_loss, "siblings"),
    (exercises.check_fuse_levels, lambda m, w, s: fuse_levels(m, [1] * len(m), s), "its weight"),
    (exercises.check_fuse_levels, lambda m, w, s: fuse_levels(m, w, s) / len(m), "by their number"),
    (
        exercises.check_fuse_levels,
        lambda m, w, s: fuse_levels(m, w, s) / sum(w),
        "sum of the weights",
    ),
    (
        exercises.check_fuse_levels,
        lambda m, w, s: fuse_levels(m, w[::-1], s),
        "order of the levels",
    ),
    (exercises.check_fuse_levels, lambda m, w, s: fuse_levels(m, w, s, mode="nearest"), "bilinear"),
    (
        exercises.check_fuse_levels,
        lambda m, w, s: fuse_levels(m, w, s, align_corners=True),
        "an area",
    ),
    (exercises.check_iou_from_confusion, lambda m: iou(m, ignore_row=True), "drop it"),
    (exercises.check_iou_from_confusion, recall, "recall"),
    (exercises.check_iou_from_confusion, lambda m: [2 * i / (1 + i) for i in iou(m)], "Dice"),
    (
        exercises.check_iou_from_confusion,
        lambda m: [i / (1 + i) for i in iou(m)],
        "take them off once",
    ),
    (exercises.check_iou_from_confusion, lambda m: iou(m, absent=0.0), "not 0"),
    (exercises.check_iou_from_confusion, lambda m: iou(m, absent=1.0), "not 1"),
    (exercises.check_iou_from_confusion, lambda m: [*iou(m), 0.0], "first C"),
]


@pytest.mark.parametrize("check, mine", SOLVED, ids=lambda f: f.__name__)
def test_a_right_answer_written_another_way_is_solved(check, mine, capsys):
    assert check(mine) is True
    assert capsys.readouterr().out == "solved\n"


@pytest.mark.parametrize(
    "check, mine, hint", SLIPS, ids=lambda x: x.replace(" ", "_") if isinstance(x, str) else ""
)
def test_a_likely_slip_gets_its_hint_on_one_line(check, mine, hint, capsys):
    assert check(mine) is False
    said = capsys.readouterr().out
    assert said.startswith("not yet: ") and hint in said and said.count("\n") == 1


def stub(*_):
    raise NotImplementedError


@pytest.mark.parametrize("check", [c for c, _ in SOLVED], ids=lambda f: f.__name__)
def test_any_other_answer_is_met_with_words_and_never_with_an_exception(check, capsys):
    answers = {
        stub: "not solved yet: ",
        lambda *_: None: "not yet: your function gives None; does it end with return?\n",
        lambda *_: (
            1 / 0
        ): "not yet: your function stopped with ZeroDivisionError: division by zero\n",
    }
    for mine, start in answers.items():
        assert check(mine) is False
        assert capsys.readouterr().out.startswith(start)


def unsolved_in_a_library(scores, share):
    """The second kind: a bare error as a stub raises, but from a method that torch left open."""
    return torch.distributions.Distribution(validate_args=False).mean


@pytest.mark.parametrize(
    "mine, words",
    [
        (lambda s, a: (s.argmax(1) == 1).mean((1, 2)) >= a, "infer output dtype"),
        (lambda s, a: s.argmax(1).softmax(1) >= a, "not implemented for 'Long'"),
        (unsolved_in_a_library, ""),
    ],
    ids=["mean of bool", "softmax of int64", "bare"],
)
def test_an_error_of_torch_is_no_stub(mine, words, capsys):
    assert exercises.check_present_classes(mine) is False
    said = capsys.readouterr().out
    assert said.startswith("not yet: your function stopped with NotImplementedError: ")
    assert words in said


def test_a_stub_is_known_however_it_is_called(capsys):
    for mine in (partial(stub), lambda *given: stub(*given)):
        assert exercises.check_present_classes(mine) is False
        assert capsys.readouterr().out.startswith("not solved yet: a pixel's winner is")


def test_a_foreign_answer_is_told_its_shape_or_its_worst_value(capsys):
    exercises.check_cosine_distance(lambda a, b: np.zeros(3))
    assert capsys.readouterr().out == "not yet: the shape is (3,), expected (3, 2)\n"
    wrong = np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    exercises.check_lloyd_step(
        lambda X, c: wrong[:, :2] + lloyd_step(X, c) + [[0, 0], [0, 0.25], [0, 0]]
    )
    assert "at (1, 1)" in capsys.readouterr().out


def test_every_check_of_the_module_is_tried_here():
    named = {name for name in vars(exercises) if name.startswith("check_")}
    assert named <= {check.__name__ for check, _ in SOLVED}


def blend(left, right):
    n = len(left)
    up = [math.sin((i + 0.5) * math.pi / n) ** 2 for i in range(n // 2)]
    return [a * (1 - w) + b * w for a, b, w in zip(left[n // 2 :], right, up)]


def polygon_area(shell, holes, mpp, sign=abs, square=2):
    def of(ring):
        closed = [*ring, ring[0]]
        return sign(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(closed, closed[1:])) / 2)

    return (of(shell) - sum(map(of, holes))) * (mpp / 1000) ** square


def test_blend_and_polygon_area_are_judged(capsys):
    assert exercises.check_blend(blend) and exercises.check_polygon_area(polygon_area)
    for check, wrong, hint in (
        (exercises.check_blend, lambda a, b: (a[2:] + b[:2]) / 2, "trusts the border"),
        (exercises.check_blend, lambda a, b: blend(b[[2, 3, 0, 1]], a[[2, 3, 0, 1]]), "swapped"),
        (exercises.check_polygon_area, lambda s, h, m: polygon_area(s, [], m), "the holes are no"),
        (exercises.check_polygon_area, partial(polygon_area, square=1), "its side squared"),
    ):
        capsys.readouterr()
        assert not check(wrong) and hint in capsys.readouterr().out
