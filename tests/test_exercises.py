"""The exercises: right answers in several styles are solved, each slip gets its own hint, whatever
else is met with words; and the notebooks hold each exercise once, as a stub that fails and a
solution that passes."""

import math
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from protolib import windows
from protolib.data import regions
from protolib.teach import exercises
from protolib.teach.exercises import judge

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("0*.ipynb"))
ALL = exercises.ALL
each = pytest.mark.parametrize("name", ALL)


# right answers, written otherwise than the kernels: in loops, in numpy, in torch


def labels_in_loops(mask, C):
    return [int(c in set(mask.ravel().tolist())) for c in range(C)]


def labels_in_numpy(mask, C):
    return np.bincount(mask.ravel(), minlength=C)[:C] > 0


def labels_in_torch(mask, C):
    return (torch.as_tensor(np.array(mask, int))[..., None] == torch.arange(C)).any(0).any(0)


def accuracy_in_loops(truth, prediction, ignore):
    judged = [(t, p) for t, p in zip(truth.ravel(), prediction.ravel()) if t != ignore]
    return sum(t == p for t, p in judged) / len(judged) if judged else math.nan


def accuracy_in_numpy(truth, prediction, ignore):
    there = truth != ignore
    return np.divide(((truth == prediction) & there).sum(), there.sum())


def accuracy_in_torch(truth, prediction, ignore):
    t, p = torch.tensor(truth), torch.tensor(prediction)
    return (t == p)[t != ignore].double().mean()


def label_by_split(name):
    return [int(d) for d in name.split("[")[-1].split("]")[0] if d.strip()]


def label_from_behind(name):
    found = []
    for letter in reversed(name[: name.rindex("]")]):
        if letter == "[":
            break
        if letter in "01":
            found.insert(0, letter == "1")
    return np.array(found)


def single_in_loops(labels):
    return [i for i, row in enumerate(labels.tolist()) if sum(map(int, row)) == 1]


def single_in_numpy(labels):
    return np.where(np.count_nonzero(labels, axis=1) == 1)[0]


def single_in_torch(labels):
    return (torch.tensor(labels).int().sum(1) == 1).nonzero()[:, 0]


def white_in_loops(images):
    clear = lambda pixel: all(-math.log((int(v) + 1) / 256) < regions.CLEAR for v in pixel)
    return [sum(clear(p) for row in i for p in row) / i[..., 0].size for i in images]


def white_in_numpy(images):
    return (images.min(-1) >= 220).mean((1, 2))


def white_in_torch(images):
    density = -((torch.tensor(images).double() + 1) / 256).log()
    return (density < regions.CLEAR).all(-1).double().mean((1, 2))


def distance_in_loops(a, b):
    return [[1 - x @ y / math.sqrt((x @ x) * (y @ y)) for y in b] for x in a]


def distance_in_numpy(a, b):
    return 1 - np.einsum("nd,kd->nk", a, b) / np.linalg.norm(a, axis=1)[:, None] / np.sqrt(
        (b**2).sum(1)
    )


def distance_in_torch(a, b):
    return 1 - F.cosine_similarity(torch.tensor(a)[:, None], torch.tensor(b)[None], dim=2)


def lloyd_in_loops(X, centres):
    labels = [max(range(len(centres)), key=lambda k: float(x @ centres[k])) for x in X]
    moved = []
    for k, centre in enumerate(centres):
        total = sum((x for x, label in zip(X, labels) if label == k), np.zeros_like(centre))
        moved.append(total / np.linalg.norm(total) if total.any() else centre)
    return np.stack(moved)


def lloyd_in_numpy(X, centres):
    sums = np.zeros_like(centres)
    np.add.at(sums, ((X[:, None] - centres) ** 2).sum(2).argmin(1), X)
    sums = np.where(sums.any(1, keepdims=True), sums, centres)
    return sums / np.linalg.norm(sums, axis=1)[:, None]


def lloyd_in_torch(X, centres):
    X, moved = torch.tensor(X), torch.tensor(centres)
    labels = (X @ moved.T).argmax(1)
    for k in labels.unique():
        moved[k] = F.normalize(X[labels == k].sum(0), dim=0)
    return moved


def prototype_in_loops(X, centre, N):
    near = sorted(X.tolist(), key=lambda x: -sum(a * b for a, b in zip(x, centre)))[:N]
    total = [sum(column) for column in zip(*near)]
    length = math.sqrt(sum(v * v for v in total))
    return [v / length for v in total]


def prototype_in_torch(X, centre, N):
    X = torch.tensor(X)
    near = (X @ torch.tensor(centre)).topk(min(N, len(X))).indices
    return F.normalize(X[near].mean(0), dim=0)


def loss_in_loops(fg, prototypes, cls, K, tau):
    own = sum(fg @ prototypes[k] for k in range(K * cls, K * cls + K))
    rest = sum(fg @ p for k, p in enumerate(prototypes) if k // K != cls)
    return torch.logaddexp(torch.zeros_like(own), (rest - own) / tau)


def loss_by_logsumexp(fg, prototypes, cls, K, tau):
    sums = (prototypes @ fg).view(-1, K).sum(1) / tau
    both = torch.stack([sums[cls], sums.sum() - sums[cls]])
    return both.logsumexp(0) - both[0]


def loss_by_sigmoid(fg, prototypes, cls, K, tau):
    own = torch.zeros(len(prototypes), dtype=fg.dtype)
    own[cls * K : cls * K + K] = 1
    return -F.logsigmoid(((2 * own - 1) * (prototypes @ fg)).sum() / tau)


def fill_in_loops(images, weight):
    filled = images.clone()
    for n in range(len(images)):
        for c in range(3):
            mean = (images[n, c] * weight[n]).sum() / weight[n].sum()
            filled[n, c] = weight[n] * images[n, c] + (1 - weight[n]) * mean
    return filled


def fill_in_numpy(images, weight):
    x, w = images.numpy(), weight.numpy()[:, None]
    mean = np.average(
        x.reshape(*x.shape[:2], -1),
        axis=2,
        weights=np.broadcast_to(w, x.shape).reshape(*x.shape[:2], -1),
    )
    return w * x + (1 - w) * mean[:, :, None, None]


def fill_in_torch(images, weight):
    w = weight[:, None]
    colour = torch.einsum("phw,pchw->pc", weight, images) / weight.sum((1, 2))[:, None]
    return torch.lerp(colour[:, :, None, None].expand_as(images), images, w.expand_as(images))


def pooling_in_loops(features, weights):
    rows = []
    for f, own in zip(features, weights):
        for w in own:
            total = w.sum()
            rows.append((f * w).sum((1, 2)) / total if total > 0 else 0 * f[:, 0, 0])
    return torch.stack(rows).view(*weights.shape[:2], -1)


def pooling_in_torch(features, weights):
    share = weights / weights.sum((2, 3), keepdim=True).clamp_min(1e-12)
    return (share[:, :, None] * features[:, None]).sum((3, 4))


def auc_in_loops(scores, inside):
    pairs = [(a, b) for a in scores[inside] for b in scores[~inside]]
    return sum(0.5 if a == b else float(a > b) for a, b in pairs) / len(pairs)


def auc_by_ranks(scores, inside):
    rank = np.array([(scores < s).sum() + ((scores == s).sum() + 1) / 2 for s in scores])
    n = inside.sum()
    return (rank[inside].sum() - n * (n + 1) / 2) / (n * (~inside).sum())


def auc_in_torch(scores, inside):
    s, i = torch.tensor(scores), torch.tensor(inside)
    return torch.heaviside(s[i][:, None] - s[~i], torch.tensor(0.5, dtype=s.dtype)).mean()


def threshold_in_loops(maps, delta):
    return [[[v >= delta * m.max() for v in row] for row in m] for m in maps]


def threshold_in_numpy(maps, delta):
    m = maps.numpy()
    return m >= delta * m.max((1, 2), keepdims=True)


def threshold_in_torch(maps, delta):
    return torch.stack([(m >= delta * m.max()).float() for m in maps])


def cosines_in_loops(features, prototypes):
    return torch.stack(
        [F.cosine_similarity(features, p.view(1, -1, 1, 1), dim=1) for p in prototypes], 1
    )


def cosines_in_numpy(features, prototypes):
    f, p = features.numpy(), prototypes.numpy()
    f, p = f / np.linalg.norm(f, axis=1)[:, None], p / np.linalg.norm(p, axis=1)[:, None]
    return np.tensordot(f, p, (1, 1)).transpose(0, 3, 1, 2)


def cosines_by_convolution(features, prototypes):
    return F.conv2d(F.normalize(features), F.normalize(prototypes)[:, :, None, None])


def merged_in_loops(maps, K):
    starts = range(0, maps.shape[1], K)
    return torch.stack([sum(maps[:, s + k] for k in range(K)) / K for s in starts], 1)


def merged_in_numpy(maps, K):
    B, S, *size = maps.shape
    return maps.numpy().reshape(B, S // K, K, *size).mean(2)


def merged_by_convolution(maps, K):
    return F.avg_pool3d(maps.contiguous()[:, None], (K, 1, 1))[:, 0]


def fused_in_loops(maps, weights, size):
    total = torch.zeros(*maps[0].shape[:2], *size, dtype=maps[0].dtype)
    for i, level in enumerate(maps):
        total += F.interpolate(weights[i] * level, size=tuple(size), mode="bilinear")
    return total


def fused_in_torch(maps, weights, size):
    up = torch.stack([F.interpolate(m, size, mode="bilinear") for m in maps])
    return torch.einsum("l,lbchw->bchw", torch.tensor(weights, dtype=up.dtype), up)


def masks_in_loops(scores, labels):
    found = torch.zeros(len(scores), *scores.shape[2:])
    for b, label in enumerate(labels):
        there = [c for c in range(len(label)) if label[c]] or list(range(len(label)))
        found[b] = torch.tensor(there)[scores[b, there].argmax(0)]
    return found


def masks_in_numpy(scores, labels):
    s, y = scores.numpy(), labels.numpy().astype(bool)
    y = y | ~y.any(1, keepdims=True)
    return np.where(y[:, :, None, None], s, -np.inf).argmax(1)


def masks_in_torch(scores, labels):
    absent = (labels == 0) & (labels > 0).any(1, keepdim=True)
    return scores.masked_fill(absent[:, :, None, None], -math.inf).argmax(1).byte()


def atrous_in_loops(features, weights, biases, rates):
    B, _, h, w = features.shape
    total = sum(biases).view(1, -1, 1, 1).expand(B, -1, h, w).clone()
    for kernel, r in zip(weights, rates):
        padded = F.pad(features, (r, r, r, r))
        for y in range(3):
            for x in range(3):
                seen = padded[:, :, y * r : y * r + h, x * r : x * r + w]
                total += torch.einsum("bdhw,cd->bchw", seen, kernel[:, :, y, x])
    return total


def atrous_by_modules(features, weights, biases, rates):
    C, D = weights[0].shape[:2]
    made = []
    for weight, bias, rate in zip(weights, biases, rates):
        conv = torch.nn.Conv2d(D, C, 3, padding=rate, dilation=rate).to(weight.dtype)
        conv.weight.data, conv.bias.data = weight, bias
        made.append(conv(features))
    return torch.stack(made).sum(0)


def pixels_in_loops(logits, masks):
    C, losses = logits.shape[1], []
    for b, y, x in (masks != C).nonzero().tolist():
        z = logits[b, :, y, x]
        losses.append(z.logsumexp(0) - z[masks[b, y, x]])
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def pixels_in_torch(logits, masks):
    C = logits.shape[1]
    if (masks == C).all():
        return torch.zeros((), dtype=logits.dtype)
    return F.cross_entropy(logits, masks, ignore_index=C)


def present_in_loops(scores, share):
    wins = [[int((image.argmax(0) == c).sum()) for c in range(len(image))] for image in scores]
    return [[n >= share * sum(row) for n in row] for row in wins]


def present_in_numpy(scores, share):
    winner = scores.numpy().argmax(1)
    return np.stack([(winner == c).mean((1, 2)) >= share for c in range(scores.shape[1])], 1)


def present_in_torch(scores, share):
    return F.one_hot(scores.argmax(1), scores.shape[1]).double().mean((1, 2)) >= share


def confusion_in_loops(truth, prediction, C):
    matrix = [[0] * (C + 1) for _ in range(C + 1)]
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist()):
        if t <= C:
            matrix[t][p] += 1
    return matrix


def confusion_in_numpy(truth, prediction, C):
    edges = np.arange(C + 2) - 0.5
    return np.histogram2d(truth.ravel(), prediction.ravel(), (edges, edges))[0]


def confusion_in_torch(truth, prediction, C):
    t, p = torch.tensor(truth).long().flatten(), torch.tensor(prediction).long().flatten()
    one = lambda m: F.one_hot(m, C + 1)
    return one(t[t <= C]).T @ one(p[t <= C])


def iou_in_loops(matrix):
    found = []
    for c in range(len(matrix) - 1):
        union = matrix[c].sum() + matrix[:-1, c].sum() - matrix[c, c]
        found.append(matrix[c, c] / union if union else math.nan)
    return found


def iou_in_numpy(matrix):
    judged = matrix[:-1]
    hits = np.diag(judged)
    return np.divide(hits, judged.sum(1) + judged.sum(0)[:-1] - hits)


def iou_in_torch(matrix):
    m = torch.tensor(matrix)[:-1].double()
    return m.diag() / (m.sum(1) + m.sum(0)[:-1] - m.diag())


def background_in_loops(scores):
    found = torch.empty(len(scores), *scores.shape[2:])
    for b, y, x in np.ndindex(*found.shape):
        own = scores[b, :, y, x].tolist()
        own.append((1 - max(own)) ** 10)
        found[b, y, x] = own.index(max(own))
    return found


def background_in_numpy(scores):
    s = scores.numpy()
    return np.concatenate([s, (1 - s.max(1, keepdims=True)) ** 10], 1).argmax(1)


def interval_in_loops(ours, theirs):
    from scipy import stats

    d = [a - b for a, b in zip(ours, theirs)]
    mean = sum(d) / len(d)
    half = math.sqrt(sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d))
    half *= stats.t.ppf(0.975, len(d) - 1)
    return [mean - half, mean + half]


def interval_in_scipy(ours, theirs):
    from scipy import stats

    return tuple(stats.ttest_rel(ours, theirs).confidence_interval(0.95))


def blend_in_loops(left, right):
    n = len(left)
    up = [math.sin((i + 0.5) * math.pi / n) ** 2 for i in range(n // 2)]
    return [a * (1 - w) + b * w for a, b, w in zip(left[n // 2 :], right, up)]


def blend_in_numpy(left, right):
    n = len(left)
    w = np.sin((np.arange(n // 2) + 0.5) * np.pi / n) ** 2
    return left[n // 2 :] + w * (right[: n // 2] - left[n // 2 :])


def blend_in_torch(left, right):
    n = len(left)
    a, b = torch.tensor(left[n // 2 :].copy()), torch.tensor(right[: n // 2].copy())
    return torch.lerp(a, b, torch.sin((torch.arange(n // 2) + 0.5) * torch.pi / n).to(a) ** 2)


def area_in_loops(shell, holes, mpp):
    def of(ring):
        closed = [*ring, ring[0]]
        return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(closed, closed[1:])) / 2)

    return (of(shell) - sum(map(of, holes))) * (mpp / 1000) ** 2


def area_by_trapezoids(shell, holes, mpp):
    def of(ring):
        x, y = np.vstack([ring, ring[:1]]).T
        return np.abs((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())

    return (of(shell) - sum(of(hole) for hole in holes)) * mpp * mpp / 1e6


def area_in_torch(shell, holes, mpp):
    def of(ring):
        ring = torch.tensor(ring.copy())
        return torch.linalg.det(torch.stack([ring, ring.roll(-1, 0)], 1)).sum().abs() / 2

    return (of(shell) - sum(map(of, holes))) * (mpp / 1000) ** 2


RIGHT = {
    "image_label": (labels_in_loops, labels_in_numpy, labels_in_torch),
    "accuracy": (accuracy_in_loops, accuracy_in_numpy, accuracy_in_torch),
    "parse_label": (label_by_split, label_from_behind),
    "single_class": (single_in_loops, single_in_numpy, single_in_torch),
    "white_share": (white_in_loops, white_in_numpy, white_in_torch),
    "cosine_distance": (distance_in_loops, distance_in_numpy, distance_in_torch),
    "lloyd_step": (lloyd_in_loops, lloyd_in_numpy, lloyd_in_torch),
    "nearest_mean": (prototype_in_loops, prototype_in_torch),
    "foreground_loss": (loss_in_loops, loss_by_logsumexp, loss_by_sigmoid),
    "mean_fill": (fill_in_loops, fill_in_numpy, fill_in_torch),
    "masked_pooling": (pooling_in_loops, pooling_in_torch),
    "auc": (auc_in_loops, auc_by_ranks, auc_in_torch),
    "adaptive_threshold": (threshold_in_loops, threshold_in_numpy, threshold_in_torch),
    "cosine_maps": (cosines_in_loops, cosines_in_numpy, cosines_by_convolution),
    "merge_subclasses": (merged_in_loops, merged_in_numpy, merged_by_convolution),
    "fuse_levels": (fused_in_loops, fused_in_torch),
    "closed_masks": (masks_in_loops, masks_in_numpy, masks_in_torch),
    "atrous_sum": (atrous_in_loops, atrous_by_modules),
    "pixel_loss": (pixels_in_loops, pixels_in_torch),
    "present_classes": (present_in_loops, present_in_numpy, present_in_torch),
    "confusion": (confusion_in_loops, confusion_in_numpy, confusion_in_torch),
    "iou_from_confusion": (iou_in_loops, iou_in_numpy, iou_in_torch),
    "background_channel": (background_in_loops, background_in_numpy),
    "paired_interval": (interval_in_loops, interval_in_scipy),
    "blend": (blend_in_loops, blend_in_numpy, blend_in_torch),
    "polygon_area": (area_in_loops, area_by_trapezoids, area_in_torch),
}


def test_every_exercise_is_tried_here():
    assert set(RIGHT) == set(ALL) and len(ALL) >= 26


@pytest.mark.parametrize(
    "name, mine",
    [(name, mine) for name, own in RIGHT.items() for mine in own],
    ids=lambda given: getattr(given, "__name__", given),  # an address differs between processes
)
def test_a_right_answer_in_another_style_is_solved(name, mine, capsys):
    assert ALL[name](mine) is True
    assert capsys.readouterr().out == f"{mine.__name__}: solved\n"


@each
def test_each_slip_is_refused_with_its_own_hint(name):
    check = ALL[name]
    assert len(check.slips) >= 5
    assert {hint: check.verdict(slip) for hint, slip in check.slips.items()} == {
        hint: f"not yet: {hint}" for hint in check.slips
    }


# what any answer may be


def stub(*_):
    raise NotImplementedError


@each
def test_any_other_answer_is_met_with_words_and_never_with_an_exception(name):
    check = ALL[name]
    assert check.verdict(stub) == f"not solved yet: {check.nudge}"
    assert check.verdict(lambda *_: None).startswith("not yet: your function gives None")
    assert "ZeroDivisionError: division by zero" in check.verdict(lambda *_: 1 / 0)
    assert "expected numbers" in check.verdict(lambda *_: "solved")
    assert check.verdict(lambda: 0).startswith("not yet: your function stopped with TypeError")
    for constant in (0, True, [0.5, 0.5], np.zeros((2, 3)), torch.ones(2)):
        assert check.verdict(lambda *_, value=constant: value).startswith("not yet: ")


@each
def test_an_answer_from_a_table_of_the_first_input_does_not_pass(name):
    check = ALL[name]
    first = check.right(*check.inputs[0])
    assert check.verdict(lambda *_: first) != ""


@each
def test_the_nudge_and_the_hints_are_one_line_and_no_code(name):
    check = ALL[name]
    for text in (check.nudge, *check.slips):
        assert "\n" not in text and " = np." not in text and "lambda" not in text


def test_an_argument_that_is_changed_is_named():
    def destroyed(X, centres):
        centres[:] = lloyd_in_loops(X, centres)
        return centres

    verdict = exercises.check_lloyd_step.verdict(destroyed)
    assert verdict == (
        "not yet: the values are right, but your function changes its argument centres; "
        "work on a copy"
    )


def test_a_gradient_that_is_cut_is_named():
    cut = lambda *given: loss_in_loops(*given).detach()
    assert "no gradient reaches fg" in exercises.check_foreground_loss.verdict(cut)
    alone = lambda fg, P, *rest: loss_in_loops(fg, P, *rest) + 0 * fg.sum()
    assert exercises.check_foreground_loss.verdict(alone) == ""
    twice = lambda fg, P, *rest: loss_in_loops(fg, P, *rest) + (fg - fg.detach()).sum()
    assert "the gradient of fg is not" in exercises.check_foreground_loss.verdict(twice)


def test_what_is_wrong_everywhere_in_one_way_is_said_so():
    distance, fuse = exercises.check_cosine_distance, exercises.check_fuse_levels
    assert "0.5 times" in distance.verdict(lambda a, b: distance_in_numpy(a, b) / 2)
    assert "these are percent" in distance.verdict(lambda a, b: 100 * distance_in_numpy(a, b))
    assert "rounding" in distance.verdict(lambda a, b: distance_in_numpy(a, b).astype(np.float16))
    assert "but not the shape" in distance.verdict(lambda a, b: distance_in_numpy(a, b)[None])
    assert "this is minus" in fuse.verdict(lambda *given: -fused_in_loops(*given))
    swapped = lambda *given: fused_in_loops(*given).swapaxes(2, 3)
    assert "the last two axes are swapped" in fuse.verdict(swapped)


def test_values_of_which_only_some_are_right_are_no_factor_and_no_difference():
    seen = exercises.check_present_classes.verdict(
        lambda s, a: np.maximum(present_in_loops(s, a), [[1] + [0] * (s.shape[1] - 1)])
    )
    assert seen.startswith("not yet: the value at (1, 0) is 1, expected 0")


def test_what_is_wrong_on_some_kind_of_input_alone_is_told_which_kind():
    def cut(fg, P, cls, K, tau):
        s = (P @ fg).view(-1, K).sum(1) / tau
        a, b = s[cls].clamp(max=80).exp(), (s.sum() - s[cls]).clamp(max=80).exp()
        return -(a / (a + b)).log()

    said = exercises.check_foreground_loss.verdict(cut)
    assert said.startswith("not yet: right elsewhere, but not for a small tau")
    zero = lambda z, m: F.cross_entropy(z, m, ignore_index=z.shape[1]).nan_to_num(1.0)
    said = exercises.check_pixel_loss.verdict(zero)
    assert said == "not yet: right elsewhere, but not where no pixel is judged: the loss is 0 there"


def test_a_foreign_answer_is_told_its_shape_or_its_worst_value_and_the_input():
    verdict = exercises.check_cosine_distance.verdict(lambda a, b: np.arange(float(len(a))))
    assert verdict == (
        "not yet: an axis was lost, by a mean, a sum or a maximum over too many: "
        "the shape is (3,), expected (3, 2) (for a (3, 2), b (2, 2))"
    )
    off = lambda X, centres: lloyd_in_loops(X, centres) + np.arange(X.shape[1])
    said = exercises.check_lloyd_step.verdict(off)
    assert "yours go from" in said and "X (6, 2), centres (3, 2)" in said


def test_a_loop_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.2)

    def endless(*_):
        while True:
            pass

    assert "does a loop never end?" in exercises.check_auc.verdict(endless)


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
def test_an_error_of_torch_is_no_stub(mine, words):
    said = exercises.check_present_classes.verdict(mine)
    assert said.startswith("not yet: your function stopped with NotImplementedError")
    assert words in said


def test_a_stub_is_known_however_it_is_called():
    for mine in (partial(stub), lambda *given: stub(*given)):
        assert exercises.check_present_classes.verdict(mine).startswith("not solved yet: ")


def test_a_check_raises_where_it_is_graded(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    with pytest.raises(AssertionError, match="not solved yet"):
        exercises.check_auc(stub)
    assert exercises.check_auc(auc_in_loops)


# the notebooks


def cells():
    """(name, stub, check, solution) of every exercise of the notebooks, and its notebook's
    imports."""
    found = []
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        code = {c.id: c for c in book.cells if c.cell_type == "code"}
        for c in code.values():
            name = c.metadata.get("nbgrader", {}).get("grade_id")
            if name:
                base = "ex-" + name.replace("_", "-")
                parts = [code[f"{base}-{part}"] for part in ("stub", "check", "solution")]
                found.append((path.stem[:2], name, *parts))
    return found


CELLS = cells()


def test_each_exercise_stands_in_one_notebook():
    assert sorted(name for _, name, *_ in CELLS) == sorted(ALL)


@pytest.mark.parametrize(
    "notebook, name, stub, check, solution", CELLS, ids=[name for _, name, *_ in CELLS]
)
def test_an_exercise_fails_as_a_stub_and_passes_with_its_solution(
    notebook, name, stub, check, solution, capsys
):
    assert stub.metadata.tags == ["exercise"] and check.metadata.tags == ["check"]
    assert solution.metadata.tags == ["solution"]
    assert check.metadata.nbgrader.points == ALL[name].points
    assert f"exercises.check_{name}({name})" in check.source
    assert f"otebook {notebook}" in " ".join(ALL[name].__doc__.split())
    space = dict(np=np, torch=torch, F=F, regions=regions, exercises=exercises, windows=windows)
    from scipy.stats import t

    space["t"] = t
    exec(stub.source, space)
    assert not eval(f"exercises.check_{name}({name})", space)
    assert capsys.readouterr().out.startswith(f"{name}: not solved yet: ")
    exec(solution.source, space)
    assert capsys.readouterr().out == f"{name}_solution: solved\n"
    assert space[name] is not space[f"{name}_solution"]  # the learner's own name is untouched
    assert not eval(f"exercises.check_{name}({name})", space)
