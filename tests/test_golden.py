"""What preset released_code runs, against numbers of the released code and against the slow
formulas of reference.py.

The numbers lie in the folder that PROTOLIB_GOLDEN names, by default shared/golden beside the
repository. A file that is missing is skipped by name; the reference draws cases of its kind all the
same. Shapes and settings are the arrays'.
"""

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from protolib import bank, cams, matching, training
from protolib.classnet import ClassNet, PrototypeHead
from protolib.data import patches, pictures, specs
from protolib.losses import classification_loss, pbip_loss
from protolib.maps import argmax_masks, background_score, fuse, merge_subclasses, unit_scores
from protolib.metrics import confusion, label_accuracy, per_class, scores
from protolib.nets.backbones import Backbone
from protolib.presets import PRESETS

GOLDEN = Path(
    os.environ.get("PROTOLIB_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden"
)
SEVERAL = ("kmeans", "confusion", "masking")  # kinds of several files
RELEASED = PRESETS["released_code"]
OURS = {"mean": "mean", "max": "softmax"}  # what the released code calls "max" is no maximum
SHARED = RELEASED.threshold == "image"
UNEVEN = {"sizes": (2, 4, 1, 5)}
# sides of a power of two and one: positions fall on the same pixels in float32, so that a score of
# 0 is 0 there in both
TOY = {"B": 6, "sizes": (2, 1, 4), "H": 9, "W": 33, "pools": (1, 3, 3, 3)}
SHAPES = {  # of the cases that the reference draws, with seeds 1, 2, ...
    "infonce": [{"N": 1, "D": 5, "L": 3}, {"N": 9, "D": 20, "L": 1}, {"N": 30, "D": 12, "L": 7}],
    "infonce_edge": [{"N": 4, "D": 6, "L": 7}],
    "pair_features": [{"B": 5, "S": 8, "D": 10}],
    "merge_predictions": [dict(B=3, **UNEVEN), {"B": 4, "sizes": (2, 2, 2)}],
    "merge_cams": [dict(B=3, h=4, w=6, **UNEVEN)],
    "expand_labels": [dict(B=5, **UNEVEN)],
    "positive_selection": [dict(B=9, **UNEVEN), {"B": 7, "sizes": (4, 4)}],
    "mask_adapter": [{"B": 6, "C": 3, "h": 5, "w": 8}],
    "masking": [dict(B=3, size=20, positions=5, **UNEVEN)],
    "seg_label": [{"B": 5, "C": 3, "h": 6, "w": 4, "out_hw": (21, 17)}],
    "fuse": [TOY],
    "validate_tta": [TOY],
    "kmeans": [
        {"n": 90, "d": 16, "k": 5, "max_iter": 50},
        {"n": 50, "d": 6, "k": 2, "max_iter": 1},
        {"n": 70, "d": 9, "k": 4, "max_iter": 50, "unit_rows": False},
    ],
    "confusion": [
        {"shape": (2, 13, 11), "num_classes": 4},
        {"shape": (2, 9, 9), "num_classes": 6, "absent": 2},
        {"shape": (3, 8, 7), "num_classes": 3, "strange": 20},
    ],
    "lr_schedule": [
        {"steps": 30, "warmup": 0, "max_iter": 30, "power": 1.0, "ratio": 1e-3},
        {"steps": 40, "warmup": 7, "max_iter": 25, "power": 1.7, "ratio": 0.2},
    ],
    "prototype_cam_head": [
        {
            "B": 3,
            "S": 8,
            "D": 24,
            "hidden": 6,
            "stages": ((5, 6, 4), (9, 3, 2), (12, 3, 2), (7, 2, 1)),
        }
    ],
    "preprocess": [{"H": 9, "W": 7}],
}


def files(kind: str) -> list[Path]:
    return sorted(GOLDEN.glob(f"{kind}*.npz" if kind in SEVERAL else f"{kind}.npz"))


def names(path: Path) -> list[str]:
    """The cases of a file; one without a name if its keys have no "case/" before them."""
    with np.load(path) as arrays:
        return list(dict.fromkeys(key.rpartition("/")[0] for key in arrays.files))


def read(path: Path, case: str) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        split = [(key, *key.rpartition("/")) for key in arrays.files]
        return {name: arrays[key] for key, owner, _, name in split if owner == case}


def golden(kind: str) -> list:
    found = [
        pytest.param(partial(read, path, case), id=f"golden-{path.stem}{case and '-'}{case}")
        for path in files(kind)
        for case in names(path)
    ]
    missing = pytest.mark.skip(
        reason=f"no {kind} file in the folder of golden vectors, {GOLDEN.name}"
    )
    return found or [pytest.param(None, id=f"golden-{kind}", marks=missing)]


def cases(kind: str):
    """Run a test over every case of the golden files of a kind, then over those that the reference
    draws."""
    drawn = enumerate(SHAPES[kind], 1)
    made = [
        pytest.param(partial(reference.make, kind, i, **shape), id=f"reference-{i}")
        for i, shape in drawn
    ]
    return pytest.mark.parametrize("v", golden(kind) + made, indirect=True)


@pytest.fixture
def v(request) -> dict[str, np.ndarray]:
    return request.param()


def tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def sizes(v: dict) -> tuple[int, ...]:
    return tuple(v["k_list"].tolist())


def close(found, wanted, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    found = found.detach().numpy() if isinstance(found, Tensor) else np.asarray(found)
    assert found.shape == np.shape(wanted)
    np.testing.assert_allclose(found, wanted, rtol, atol)


def equal(found, wanted) -> None:
    np.testing.assert_array_equal(np.asarray(found), wanted)


class Bare(ClassNet):
    """The network of the released preset without backbone and heads: each test says what it
    reads."""

    def __init__(self, sizes: tuple[int, ...]):
        nn.Module.__init__(self)
        self.sizes, self.levels = sizes, RELEASED.levels
        self.pool, self.order, self.gates = RELEASED.pool, RELEASED.order, None
        self.bias = nn.Parameter(
            torch.zeros(len(self.levels), len(sizes)), requires_grad=RELEASED.bias
        )
        self.prepare = lambda images: images
        self.eval()


def toy(v: dict) -> Bare:
    """The toy model of the vectors: maps are fixed mixtures of the colours, uneven from position
    to position."""
    stages = [
        (int(pool), *(tensor(v[f"{name}{s}"]) for name in "WPB"))
        for s, pool in enumerate(v["pools"], 1)
    ]
    net = Bare(sizes(v))
    net.read = lambda x: [
        torch.einsum("sc,bchw->bshw", W, F.avg_pool2d(x, pool)) * P + B for pool, W, P, B in stages
    ]
    return net


@pytest.mark.parametrize("kind", reference.KINDS)
def test_the_slow_formulas_give_the_golden_numbers(kind):
    found = [(path, case) for path in files(kind) for case in names(path)]
    if not found:
        pytest.skip(f"no {kind} file in the folder of golden vectors, {GOLDEN.name}")
    for path, case in found:
        v = read(path, case)
        results = reference.outputs(kind, v)
        for name in results.keys() & v.keys():
            if v[name].dtype.kind == "f":
                close(results[name], v[name])
            else:
                equal(results[name], v[name])


# The matching loss


def table(fg_pro: Tensor, bg_pro: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The prototypes of all pairs as rows of one table, each pair's positive before its negatives;
    positives and negatives (N, rows)."""
    N, L, D = bg_pro.shape
    row = torch.arange(N * (1 + L))
    mine = row // (1 + L) == torch.arange(N)[:, None]
    first = row % (1 + L) == 0
    return torch.cat([fg_pro[:, None], bg_pro], 1).reshape(-1, D), mine & first, mine & ~first


def losses(
    v: dict, tau: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[Tensor]]:
    inputs = [
        torch.tensor(v[name], dtype=dtype, requires_grad=True)
        for name in ("img", "fg_pro", "bg_pro")
    ]
    return *matching.batch_terms(inputs[0], inputs[0], *table(*inputs[1:]), tau), inputs


@cases("infonce")
def test_the_two_losses(v):
    l_fg, l_bg, _ = losses(v, RELEASED.tau)
    close(l_fg, v["loss_fg"])
    close(l_bg, v["loss_bg"])
    l_fg, l_bg, _ = losses(v, 1.0)
    close(l_fg, v["loss_fg_T1"])
    close(l_bg, v["loss_bg_T1"])
    l_fg, l_bg, _ = losses(v, RELEASED.tau, torch.float64)
    close(l_fg, v["loss_fg_f64"], rtol=1e-7, atol=0)
    close(l_bg, v["loss_bg_f64"], rtol=1e-7, atol=0)


@cases("infonce")
def test_the_gradients_of_the_two_losses(v):
    *both, inputs = losses(v, RELEASED.tau)
    for side, loss in zip(("fg", "bg"), both):
        grads = torch.autograd.grad(loss, inputs, retain_graph=True)
        for name, grad in zip(("img", "fg_pro", "bg_pro"), grads):
            close(grad, v[f"{side}_grad_{name}"], rtol=1e-3)


def edge_cases(v: dict) -> dict[str, dict]:
    """The cases of infonce_edge by name; one without arrays has no pair."""
    D = next(array.shape[1] for name, array in v.items() if name.endswith("_img"))
    none = {"img": np.zeros((0, D)), "fg_pro": np.zeros((0, D)), "bg_pro": np.zeros((0, 1, D))}
    found = [name.removesuffix("_loss_fg") for name in v if name.endswith("_loss_fg")]
    return {case: {name: v.get(f"{case}_{name}", none[name]) for name in none} for case in found}


@cases("infonce_edge")
def test_released_nan_of_a_zero_row_of_large_prototypes_and_of_no_pair_is_finite_here(v):
    for name, case in edge_cases(v).items():
        assert np.isnan(v[f"{name}_loss_fg"]) and np.isnan(v[f"{name}_loss_bg"])
        l_fg, l_bg, inputs = losses(case, RELEASED.tau)
        # sums in the log; a zero row has cosine 0; without a pair there is nothing to match
        wanted = reference.ratios(**case, tau=RELEASED.tau) if len(case["img"]) else (0, 0)
        close(torch.stack([l_fg, l_bg]), wanted)
        (l_fg + l_bg).backward()
        assert all(x.grad is None or x.grad.isfinite().all() for x in inputs)


@cases("pair_features")
def test_pairs_and_the_prototypes_they_are_compared_with(v):
    chosen, prototypes = tensor(v["labels"]) > 0, tensor(v["prototypes"])
    pairs = chosen.nonzero()
    equal(pairs, v["pair_index"])
    # K plays no part where all other prototypes are negatives: the file has S of them in all
    p = replace(RELEASED, K=2)
    labels = chosen.unflatten(1, (-1, p.K)).any(2)  # (B, C)
    positives, negatives = matching.sides(chosen.nonzero(as_tuple=True), labels, p)
    equal(torch.stack([prototypes[row] for row in positives])[:, 0], tensor(v["out_fg_text"]))
    equal(torch.stack([prototypes[row] for row in negatives]), tensor(v["out_bg_text"]))
    # features enter as they are: the loss of the rows that the released code puts side by side is
    # ours
    fg, bg = tensor(v["fg_features"]), tensor(v["bg_features"])
    found = matching.batch_terms(fg, bg, prototypes, positives, negatives, RELEASED.tau)
    for loss, side in enumerate(("out_fg", "out_bg")):
        close(
            found[loss],
            reference.ratios(v[side], v["out_fg_text"], v["out_bg_text"], RELEASED.tau)[loss],
        )


def test_with_no_pair_selected_the_released_code_crashes_and_the_loss_here_is_0():
    images, maps, prototypes = (
        torch.rand(2, 3, 16, 16),
        torch.rand(2, 6, 4, 4, requires_grad=True),
        torch.eye(6),
    )
    none = torch.zeros(2, 6, dtype=bool)
    pictures, full = matching.cut_out(images, maps, none.nonzero(as_tuple=True), RELEASED)
    assert pictures.shape == (0, 3, 16, 16) and full.shape == (0,)
    loss = matching.matching_loss(
        images,
        maps,
        torch.zeros(2, 3),
        prototypes,
        lambda x: x.flatten(1)[:, :6],
        replace(RELEASED, K=2),
    )
    loss.backward()
    assert loss == 0 and not maps.grad.any()


def test_k_of_1_crashes_the_released_code_and_is_refused_here():
    with pytest.raises(ValueError, match="with K = 1 .* 'subclasses' selects nothing"):
        replace(RELEASED, K=1)


# Sub-classes and classes


@cases("merge_predictions")
def test_subclass_logits_merge_into_classes_with_their_gradients(v):
    for theirs, ours in OURS.items():
        pred = tensor(v["pred"]).requires_grad_()
        merged = merge_subclasses(pred, sizes(v), ours)
        (merged * tensor(v["cotangent"])).sum().backward()
        close(merged, v[f"out_{theirs}"])
        close(pred.grad, v[f"grad_{theirs}"], rtol=1e-3)


@cases("merge_cams")
def test_subclass_maps_merge_into_classes(v):
    for theirs, ours in OURS.items():
        close(merge_subclasses(tensor(v["cams"]), sizes(v), ours), v[f"out_{theirs}"])


@cases("expand_labels")
def test_class_values_are_copied_to_their_subclasses(v):
    equal(matching.expand_labels(tensor(v["parent"]), sizes(v)), tensor(v["out"]))


@cases("positive_selection")
def test_subclasses_above_their_class_are_selected_and_never_the_only_one(v):
    logits, labels = tensor(v["logits"]), tensor(v["labels"])
    alone = np.repeat(v["k_list"] == 1, v["k_list"])
    for theirs, ours in OURS.items():
        close(merge_subclasses(logits, sizes(v), ours), v[f"parent_{theirs}"])
        chosen = matching.select_subclasses(logits, labels, sizes(v), ours)
        equal(chosen, v[f"selected_{theirs}"])
        assert not chosen[:, alone].any()


# Foreground and background


@cases("mask_adapter")
def test_the_threshold_that_all_maps_of_an_image_share(v):
    x, flat = tensor(v["x"]), tensor(v["x_flat"])
    for name in v:
        if found := re.fullmatch(r"(mask|maskcam|mask_flat)_a(\d)(\d+)", name):
            maps, delta = flat if "flat" in name else x, float(f"{found[2]}.{found[3]}")
            b = matching.pool_foreground(maps, delta, SHARED)
            equal(b * maps if "cam" in name else b, tensor(v[name]))


@cases("masking")
def test_foreground_and_background_pictures(v):
    images, maps, (image, unit) = tensor(v["inputs"]), tensor(v["cam"]), v["pair_index"].T
    pictures, full = matching.cut_out(
        images, maps, (tensor(v["labels"]) > 0).nonzero(as_tuple=True), RELEASED
    )
    assert full.all() and len(pictures) == 2 * len(image)
    close(pictures, np.concatenate([v["masked_fg"], v["masked_bg"]]))
    up = fuse([maps], (1.0,), images.shape[2:], RELEASED.align_corners)
    b = matching.pool_foreground(up, RELEASED.delta, SHARED)
    equal(b[image, unit][:, None], v["fg_masks"])
    if "cam_up" in v:  # the larger file leaves out what lies between
        close(up, v["cam_up"])
        equal(b, v["cam_up_mask"])
        equal(~b[image, unit][:, None], v["bg_masks"])
        for raw, part in (("fg_raw", up), ("bg_raw", 1 - up)):
            low, high = (end(v[raw], (2, 3), keepdims=True) for end in (np.min, np.max))
            everywhere = torch.ones_like(b[image, unit])
            close(
                matching.rescale(images[image], part[image, unit], everywhere),
                (v[raw] - low) / (high - low + 1e-8),
            )


@cases("masking")
def test_gradients_pass_through_the_pictures_and_not_the_threshold(v):
    if "cot_fg" not in v:
        pytest.skip("this file has no gradients")
    images, maps = (tensor(v[name]).requires_grad_() for name in ("inputs", "cam"))
    pictures, _ = matching.cut_out(
        images, maps, (tensor(v["labels"]) > 0).nonzero(as_tuple=True), RELEASED
    )
    (pictures * tensor(np.concatenate([v["cot_fg"], v["cot_bg"]]))).sum().backward()
    close(maps.grad, v["grad_cam"], rtol=1e-3)
    close(images.grad, v["grad_inputs"], rtol=1e-3)


# Prediction


def segment(class_maps: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    """The scores of one level under the image labels, as argmax_masks sees them."""
    return (
        fuse([unit_scores(class_maps)], (1.0,), size, RELEASED.align_corners)
        * labels[:, :, None, None]
    )


@cases("seg_label")
def test_maps_become_scores_and_a_background(v):
    found = segment(tensor(v["cams"]), tensor(v["labels"]), tuple(v["out_hw"].tolist()))
    close(found, v["out"])
    close(torch.cat([found, background_score(found)], 1), v["with_background"])


@cases("fuse")
def test_fused_scores_and_masks(v):
    net, images, labels = toy(v), tensor(v["images"]), tensor(v["labels"])
    for s, m in enumerate(net.class_maps(net(images), RELEASED.merge_test), 1):
        close(segment(m, labels, images.shape[2:]), v[f"seg{s}"])
    found, _ = cams.predict(net, images, RELEASED, RELEASED.pseudo_tta)
    close(found * labels[:, :, None, None], v["fused"])
    equal(argmax_masks(found, labels, RELEASED.gating), v["argmax"])


class Patches(list):
    """Images and labels as the training split that pseudo_masks reads."""

    split, fingerprint = "train", ""

    def __init__(self, v: dict):
        super().__init__({"image": tensor(x) * 255, "index": i} for i, x in enumerate(v["images"]))
        self.labels, self.ids = v["labels"], [f"patch{i}" for i in range(len(self))]
        self.spec = SimpleNamespace(name="toy", palette=v["palette"].tolist())


@cases("fuse")
def test_pseudo_masks_are_written_as_palette_files(v, tmp_path):
    patches = Patches(v)
    cams.pseudo_masks(toy(v), patches, tmp_path / "masks", RELEASED, {})
    for name, wanted in zip(patches.ids, v["png"]):
        with Image.open(tmp_path / "masks" / f"{name}.png") as mask:
            equal(mask, wanted)
            equal(mask.getpalette()[: v["palette"].size], v["palette"].ravel())


def test_the_released_views_are_six_and_the_labels_are_read_off_the_plain_one():
    assert [(mirrored, factor) for mirrored, factor, _ in cams.VIEWS[RELEASED.tta]] == list(
        reference.VIEWS
    )
    assert [view[:2] for view in cams.VIEWS[RELEASED.tta] if view[2]] == [(False, 1.0)]


@cases("validate_tta")
def test_the_maps_of_every_view(v):
    net, images = toy(v), tensor(v["images"])
    views = [(0, 1.0), *zip(v["aug_flip"], v["aug_factor"])]
    for call, (mirrored, factor) in enumerate(views):
        for s, m in enumerate(net(float(factor) * (images.flip(3) if mirrored else images)), 1):
            close(m, v[f"raw_cam{s}"][:, call])


@cases("validate_tta")
def test_validation_from_images_to_scores(v, monkeypatch):
    net, images, labels = toy(v), tensor(v["images"]), tensor(v["labels"])
    views = zip(v["aug_flip"].tolist(), v["aug_factor"].tolist())
    monkeypatch.setitem(
        cams.VIEWS, RELEASED.tta, tuple((bool(m), f, not m and f == 1) for m, f in views)
    )
    found, logits = cams.predict(net, images, RELEASED, RELEASED.tta)
    close(found * labels[:, :, None, None], v["fused"])
    masks = argmax_masks(found, labels, RELEASED.gating)
    equal(masks, v["argmax"])
    check_confusion(v["gt"], masks.numpy(), v)
    close(100 * np.array(label_accuracy(logits, labels)), [v["all_cls_acc4"], v["avg_cls_acc4"]])
    read = net.logits(net(images), RELEASED.merge_test)
    close(classification_loss(read, labels, RELEASED.level_weights), v["cls_loss"])


# Clusters, scores, steps


@cases("kmeans")
def test_kmeans_from_given_rows(v):
    X = v["X"].astype(np.float32)
    found = bank.lloyd(X, X[v["init_index"]], int(v["max_iter"]))
    equal(found.labels, v["labels"])
    close(found.cosines, v["similarities"])
    close(found.centres, v["centers"])
    assert found.steps == v["n_iter"]


def test_kmeans_starts_from_the_rows_that_seed_42_draws():
    v = reference.make("kmeans", 7, n=120, d=4, k=6, max_iter=1)
    equal(bank.random_rows(v["X"], 6, seed=0), v["X"][v["init_index"]])
    assert RELEASED.kmeans_start == "rows" and RELEASED.restarts == 1


def check_confusion(gt, pred, v: dict) -> dict:
    """Counts exact, scores close; returns ours, where ignore counts as in the released code."""
    C = len(v["mat"]) - 1
    matrix = sum(confusion(t, p, C) for t, p in zip(gt, pred))
    equal(matrix, v["mat"])
    equal(confusion((gt != 0).astype(int), (pred != 0).astype(int), 1), v["mat_2x2"])
    close(per_class(matrix)["iou"], v["iou"])
    return scores(matrix, RELEASED.ignore)


@cases("confusion")
def test_confusion_and_its_scores(v):
    found, overlap = check_confusion(v["gt"], v["pred"], v), per_class(v["mat"])
    assert len(v["mat"]) == v["num_classes"]
    close(overlap["recall"], v["acc"])
    close(overlap["dice"], v["dice"])
    close(per_class(v["mat_2x2"])["dice"], v["dice_2x2"])
    close(found["accuracy"], v["acc_global"])


@cases("confusion")
def test_released_mean_is_nan_when_a_class_is_absent_and_here_the_mean_of_those_there(v):
    iou = v["iou"][:-1]
    assert np.isnan(v["miou_first_n_minus_1"]) == np.isnan(iou).any()
    close(scores(v["mat"], RELEASED.ignore)["miou"], iou[~np.isnan(iou)].mean())


@cases("lr_schedule")
def test_learning_rates_and_the_steps_that_adamw_takes_with_them(v):
    lr0, warmup, steps, power, ratio, decay, *betas, eps = v["params"].tolist()
    w = nn.Parameter(tensor(v["w0"]))
    optimizer = torch.optim.AdamW([w], lr=lr0, betas=betas, eps=eps, weight_decay=decay)
    # warm-up is in epochs, and here of one step each
    settings = {"epochs": int(steps), "lr": lr0, "lr_power": power, "warmup": warmup}
    p = replace(RELEASED, **settings, warmup_ratio=ratio)
    for t, grad in enumerate(v["grads"]):
        lr = training.poly_lr(t, int(steps), p)
        close(
            lr, v["lr"][t], rtol=1e-9, atol=0
        )  # rates are 1e-5 and less: an absolute tolerance would accept any
        optimizer.param_groups[0]["lr"] = lr
        w.grad = tensor(grad)
        optimizer.step()
        close(w, v["w"][t], rtol=1e-6, atol=2e-6)  # so would 1e-5 accept a fifth of a step


# Head and input


@cases("prototype_cam_head")
def test_maps_and_logits_of_the_head(v):
    prototypes, stages = (
        tensor(v["prototypes"]),
        range(1, 1 + sum(name.startswith("feat") for name in v)),
    )
    net = Bare((1,) * len(prototypes))
    net.prototypes, net.heads = nn.Parameter(prototypes), nn.ModuleList()
    net.net = SimpleNamespace(pyramid=lambda _: [tensor(v[f"feat{i}"]) for i in stages])
    for i in stages:
        (hidden, D), channels, scale = (
            v[f"fc1_w{i}"].shape,
            len(v[f"fc2_w{i}"]),
            float(v[f"scale{i}"].item()),
        )
        net.heads.append(PrototypeHead(D, channels, replace(RELEASED, hidden=hidden, scale=scale)))
        weights = (tensor(v[f"{name}{i}"]) for name in ("fc1_w", "fc1_b", "fc2_w", "fc2_b"))
        for parameter, value in zip(net.heads[-1].project.parameters(), weights, strict=True):
            parameter.data = value
    maps = net(prototypes)
    for i, m in zip(stages, maps):
        close(m, v[f"cam{i}"])
    close(net.logits(maps, RELEASED.merge_test), np.stack([v[f"cls{i}"] for i in stages]))


@cases("prototype_cam_head")
def test_the_matching_loss_reaches_only_the_maps_that_carry_gradient_and_the_labels_reach_all(v):
    flags = [bool(v[f"cam{i}_requires_grad"]) for i in range(1, 1 + len(RELEASED.levels))]
    maps = [tensor(v[f"cam{i}"]).requires_grad_() for i in range(1, 1 + len(flags))]
    (B, S, *_), D = maps[0].shape, v["prototypes"].shape[1]
    net = Bare((S,))  # one class of S sub-classes: some of them are above their mean
    net.read = lambda _: maps
    g = torch.Generator().manual_seed(0)
    look = torch.randn(3 * 16 * 16, D, generator=g)
    batch = {"image": torch.rand(B, 3, 16, 16, generator=g), "label": torch.ones(B, 1)}
    found = pbip_loss(
        net,
        batch,
        replace(RELEASED, K=S),
        bank=SimpleNamespace(prototypes=v["prototypes"].astype(np.float32), normalize=lambda x: x),
        encoder=SimpleNamespace(features=lambda pictures: pictures.flatten(1) @ look),
    )
    reached = torch.autograd.grad(found["matching"], maps, allow_unused=True)
    assert [grad is not None and bool(grad.any()) for grad in reached] == flags
    assert all(
        grad.all() for grad in torch.autograd.grad(net.logits(maps, RELEASED.merge).sum(), maps)
    )


class Scaled(Backbone):
    """A backbone that only prepares images, with the mean and std of the vectors."""

    def __init__(self, mean, std):
        nn.Module.__init__(self)
        self.register_buffer("mean", tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", tensor(std).view(1, 3, 1, 1))


@cases("preprocess")
def test_images_enter_in_the_order_blue_green_red(v):
    net = Bare((1,))
    net.net = Scaled(v["mean"], v["std"])
    rgb = tensor(v["rgb"]).permute(2, 0, 1)[None] / 255
    close(ClassNet.prepare(net, rgb)[0], v["tensor"])


def write(path: Path, pixels: np.ndarray) -> None:
    """A PNG of the pixels, made square by more of its edge: no class comes or goes."""
    side = max(pixels.shape[:2])
    more = [(0, side - n) for n in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.pad(pixels.astype(np.uint8), more, mode="edge")).save(path)


@cases("preprocess")
def test_labels_of_val_and_test_are_read_off_the_mask_and_those_of_train_off_the_name(
    v, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "SMALLEST", 8)  # these are of 10 px, which no run takes
    digits = {
        name.removeprefix("train_label_"): v[name] for name in v if name.startswith("train_label_")
    }
    for text, label in digits.items():
        equal(specs.parse_label(f"a[{text}].png", len(label)), label)
        write(tmp_path / "train" / f"a[{text}].png", v["rgb"])
    for split in ("val", "test"):
        write(tmp_path / split / "img" / "a.png", v["rgb"])
        write(tmp_path / split / "mask" / "a.png", v["mask"])
    load = partial(patches.load, "bcss-wsss", size=32, data_root=tmp_path, cache=tmp_path / "cache")
    H, W = v["mask"].shape
    for split in ("val", "test"):
        equal(load(split=split).labels[0], v["label_from_mask"])
        equal(load(split=split).masks[0][:H, :W], v["mask_out"])
    equal(load(split="train").labels, np.stack(list(digits.values())))
