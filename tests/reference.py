"""What the released code does, from the formulas alone: slow, float64, numpy; it knows nothing of
protolib.

`make(name, seed, **shapes)` draws one case of a kind of golden file and gives the arrays of that
file; `outputs` works out the results of a case from its inputs. A kind is two functions: the first
draws, the second computes. Gradients are closed forms, derived by hand. test_golden.py holds the
formulas against the golden vectors too.
"""

import numpy as np

ALPHA, TAU = 0.5, 0.07
FUSION = (0.0, 0.3, 0.3, 0.4)  # weights of the four stages in the fused maps
LEVELS = (0.0, 0.1, 1.0, 1.0)  # and in the classification loss
VIEWS = ((0, 0.9), (0, 1.0), (0, 1.1), (1, 0.9), (1, 1.0), (1, 1.1))  # mirrored, brightness


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def label_rows(rng, B: int, C: int) -> np.ndarray:
    """(B, C) of 0 and 1, a class in every row."""
    labels = rng.integers(2, size=(B, C)).astype(float)
    labels[np.arange(B), rng.integers(C, size=B)] = 1
    return labels


def groups(sizes) -> list[slice]:
    ends = np.cumsum(sizes)
    return [slice(end - k, end) for k, end in zip(sizes, ends)]


def merge(values: np.ndarray, sizes, how: str) -> np.ndarray:
    """Consecutive groups along axis 1: their "mean", or ("max") the mean that their own softmax
    weighs."""
    out = []
    for g in groups(sizes):
        x = values[:, g]
        weight = np.exp(x - x.max(1, keepdims=True)) if how == "max" else np.ones_like(x)
        out.append((weight * x).sum(1) / weight.sum(1))
    return np.stack(out, 1)


def enlarge(maps: np.ndarray, size) -> np.ndarray:
    """Bilinear, corners on corners: (..., h, w) -> (..., H, W)."""
    rows, columns = (corner_weights(n, N) for n, N in zip(maps.shape[-2:], size))
    return rows @ maps @ columns.T


def corner_weights(n: int, N: int) -> np.ndarray:
    """(N, n): what each of n positions gives to each of N pixels."""
    weight = np.zeros((N, n))
    for y in range(N):
        position, rest = divmod(y * (n - 1), N - 1)
        weight[y, position] += 1 - rest / (N - 1)
        weight[y, min(position + 1, n - 1)] += rest / (N - 1)
    return weight


# The matching loss


def draw_infonce(rng, N: int, D: int, L: int) -> dict:
    img = rng.normal(size=(N, D)) * rng.uniform(0.5, 3, (N, 1))
    return {
        "img": img,
        "fg_pro": unit(rng.normal(size=(N, D))),
        "bg_pro": unit(rng.normal(size=(N, L, D))),
    }


def ratios(img, fg_pro, bg_pro, tau: float) -> tuple[float, float]:
    """Both losses by logarithms of sums, a zero row at cosine 0: finite where the released code is
    not."""
    img, fg_pro, bg_pro = (np.asarray(x, float) for x in (img, fg_pro, bg_pro))
    u = img / np.maximum(np.linalg.norm(img, axis=1, keepdims=True), 1e-300)
    own, others = (u * fg_pro).sum(1) / tau, np.einsum("nd,nld->nl", u, bg_pro) / tau
    s_p, s_q = np.logaddexp.reduce(own), np.logaddexp.reduce(others, None)
    m = s_q - np.log(others.shape[1])
    return np.logaddexp(s_p, s_q) - s_p, np.logaddexp(m, s_p) - m


def infonce(img, fg_pro, bg_pro, **_) -> dict:
    length, u = np.linalg.norm(img, axis=1, keepdims=True), unit(img)
    N, L = bg_pro.shape[:2]
    p, q = np.exp((u * fg_pro).sum(1) / TAU), np.exp(np.einsum("nd,nld->nl", u, bg_pro) / TAU)
    P, Q = p.sum(), q.sum()
    M = Q / L
    out = {"loss_fg": -np.log(P / (P + Q)), "loss_bg": -np.log(M / (M + P))}
    out |= {f"{name}_f64": value for name, value in out.items()}
    out["loss_fg_T1"], out["loss_bg_T1"] = ratios(img, fg_pro, bg_pro, 1.0)
    # of log(P + Q) - log(P) and of log(M + P) - log(M) by the exponents of each p_i and q_ij
    for side, by_p, by_q in (
        ("fg", p / (P + Q) - p / P, q / (P + Q)),
        ("bg", p / (M + P), (q / (M + P) - q / M) / L),
    ):
        by_u = (by_p[:, None] * fg_pro + np.einsum("nl,nld->nd", by_q, bg_pro)) / TAU
        out[f"{side}_grad_img"] = (by_u - (by_u * u).sum(1, keepdims=True) * u) / length
        out[f"{side}_grad_fg_pro"] = by_p[:, None] * u / TAU
        out[f"{side}_grad_bg_pro"] = by_q[:, :, None] * u[:, None] / TAU
    return out


def draw_infonce_edge(rng, N: int, D: int, L: int) -> dict:
    zero, far = draw_infonce(rng, N, D, L), draw_infonce(rng, N, D, L)
    zero["img"][N // 2] = 0
    far["fg_pro"], far["bg_pro"] = 20 * far["fg_pro"], 20 * far["bg_pro"]
    return {f"zero_row_{k}": v for k, v in zero.items()} | {
        f"overflow_{k}": v for k, v in far.items()
    }


def infonce_edge(**_) -> dict:
    return {
        f"{case}_loss_{side}": np.nan
        for case in ("zero_row", "overflow", "empty")
        for side in ("fg", "bg")
    }


def draw_pair_features(rng, B: int, S: int, D: int) -> dict:
    labels = label_rows(rng, B, S)
    labels[B // 2] = 0
    fg, bg = rng.normal(size=(2, int(labels.sum()), D))
    return {
        "labels": labels,
        "fg_features": fg,
        "bg_features": bg,
        "prototypes": unit(rng.normal(size=(S, D))),
    }


def pair_features(labels, fg_features, bg_features, prototypes, **_) -> dict:
    pairs = [(i, s) for i, row in enumerate(labels) for s in range(len(row)) if row[s] > 0]
    others = [[p for t, p in enumerate(prototypes) if t != s] for _, s in pairs]
    return {
        "pair_index": np.array(pairs),
        "out_fg": fg_features,
        "out_bg": bg_features,
        "out_fg_text": np.array([prototypes[s] for _, s in pairs]),
        "out_bg_text": np.array(others),
    }


# Sub-classes and classes


def draw_merge_predictions(rng, B: int, sizes) -> dict:
    k_list, pred = np.array(sizes), 2 * rng.normal(size=(B, sum(sizes)))
    return {"k_list": k_list, "pred": pred, "cotangent": rng.normal(size=(B, len(sizes)))}


def merge_predictions(k_list, pred, cotangent, **_) -> dict:
    out = {f"out_{how}": merge(pred, k_list, how) for how in ("mean", "max")}
    by_mean, by_max = np.empty_like(pred), np.empty_like(pred)
    for c, g in enumerate(groups(k_list)):
        x, cot = pred[:, g], cotangent[:, c : c + 1]
        share = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        by_mean[:, g] = cot / k_list[c]
        by_max[:, g] = cot * share * (1 + x - out["out_max"][:, c : c + 1])
    return out | {"grad_mean": by_mean, "grad_max": by_max}


def draw_merge_cams(rng, B: int, sizes, h: int, w: int) -> dict:
    return {"k_list": np.array(sizes), "cams": 2 * rng.normal(size=(B, sum(sizes), h, w))}


def merge_cams(k_list, cams, **_) -> dict:
    return {f"out_{how}": merge(cams, k_list, how) for how in ("mean", "max")}


def draw_expand_labels(rng, B: int, sizes) -> dict:
    parent = label_rows(rng, B, len(sizes))
    parent[0] = rng.normal(size=len(sizes))
    return {"k_list": np.array(sizes), "parent": parent}


def expand_labels(k_list, parent, **_) -> dict:
    return {
        "out": np.array(
            [[value for value, k in zip(row, k_list) for _ in range(k)] for row in parent]
        )
    }


def draw_positive_selection(rng, B: int, sizes) -> dict:
    logits, labels = rng.normal(size=(B, sum(sizes))), label_rows(rng, B, len(sizes))
    logits[2], logits[3] = 0.5, np.nan
    labels[1], labels[2:4] = 0, 1
    return {"k_list": np.array(sizes), "logits": logits, "labels": labels}


def positive_selection(k_list, logits, labels, **_) -> dict:
    out = {}
    for how in ("mean", "max"):
        out[f"parent_{how}"] = parent = merge(logits, k_list, how)
        out[f"selected_{how}"] = chosen = np.zeros_like(logits)
        for c, g in enumerate(groups(k_list)):
            chosen[:, g] = (logits[:, g] > parent[:, c : c + 1]) * labels[:, c : c + 1]
    return out


# Foreground and background


def shared_mask(x: np.ndarray, alpha: float) -> np.ndarray:
    """1 where a sample is at least alpha times its largest value in any channel."""
    return np.array([sample >= alpha * sample.max() for sample in x]).astype(float)


def draw_mask_adapter(rng, B: int, C: int, h: int, w: int) -> dict:
    x = rng.normal(size=(B, C, h, w))
    x[1], x[2], x[3] = -np.abs(x[1]) - 0.1, 0, 1.25
    x[4] = np.clip(x[4], -1, 1)
    x[4, 1] *= 100
    return {"x": x}


def mask_adapter(x, **_) -> dict:
    flat = x.reshape(-1, 1, *x.shape[2:])
    masks = {
        "mask_a05": shared_mask(x, 0.5),
        "mask_a03": shared_mask(x, 0.3),
        "mask_flat_a05": shared_mask(flat, 0.5),
    }
    return masks | {"maskcam_a05": x * masks["mask_a05"], "x_flat": flat}


def draw_masking(rng, B: int, sizes, size: int, positions: int) -> dict:
    labels = label_rows(rng, B, sum(sizes))
    N = int(labels.sum())
    cam = 2 * rng.normal(size=(B, sum(sizes), positions, positions))
    cam[1] = -np.abs(cam[1]) - 0.1
    cot_fg, cot_bg = rng.normal(size=(2, N, 3, size, size))
    inputs = rng.normal(size=(B, 3, size, size))
    return {"inputs": inputs, "cam": cam, "labels": labels, "cot_fg": cot_fg, "cot_bg": cot_bg}


def stretch(raw: np.ndarray, mask: np.ndarray, cot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One channel stretched to [0, 1] and masked, and the gradient of its product with `cot` by
    `raw`."""
    low, high = raw.min(), raw.max()
    span = high - low + 1e-8
    by_norm = cot * mask
    by_raw = by_norm / span
    across = (by_norm * (raw - low)).sum() / span**2
    by_raw[np.unravel_index(raw.argmin(), raw.shape)] += across - by_norm.sum() / span
    by_raw[np.unravel_index(raw.argmax(), raw.shape)] -= across
    return (raw - low) / span * mask, by_raw


def masking(inputs, cam, labels, cot_fg=None, cot_bg=None, **_) -> dict:
    size, pairs = inputs.shape[2:], np.argwhere(labels > 0)
    up = enlarge(cam, size)
    up_mask = shared_mask(up, ALPHA)
    image, a = inputs[pairs[:, 0]], up[tuple(pairs.T)][:, None]  # (N, 3, S, S), (N, 1, S, S)
    fg_masks = up_mask[tuple(pairs.T)][:, None]
    out = {
        "pair_index": pairs,
        "cam_up": up,
        "cam_up_mask": up_mask,
        "fg_masks": fg_masks,
        "bg_masks": 1 - fg_masks,
        "fg_raw": a * image,
        "bg_raw": (1 - a) * image,
    }
    by_up, by_inputs, nothing = np.zeros_like(up), np.zeros_like(inputs), np.zeros_like(image)
    for side, sign, part, cot in (("fg", 1, a, cot_fg), ("bg", -1, 1 - a, cot_bg)):
        masked, cot = np.empty_like(image), nothing if cot is None else cot
        for n, (i, s) in enumerate(pairs):
            for colour in range(3):
                raw, mask = out[f"{side}_raw"][n, colour], out[f"{side}_masks"][n, 0]
                masked[n, colour], by_raw = stretch(raw, mask, cot[n, colour])
                by_up[i, s] += sign * by_raw * image[n, colour]
                by_inputs[i, colour] += by_raw * part[n, 0]
        out[f"masked_{side}"] = masked
    rows, columns = (corner_weights(n, N) for n, N in zip(cam.shape[2:], size))
    return out | {"grad_cam": rows.T @ by_up @ columns, "grad_inputs": by_inputs}


# Prediction


def draw_seg_label(rng, B: int, C: int, h: int, w: int, out_hw) -> dict:
    cams, labels = rng.normal(size=(B, C, h, w)), label_rows(rng, B, C)
    cams[2, 0], cams[2, 1], cams[2, 2] = -np.abs(cams[2, 0]) - 0.1, 0.7, 0
    labels[1], labels[2] = 0, 1
    return {"cams": cams, "labels": labels, "out_hw": np.array(out_hw)}


def segment(cams, labels, size) -> np.ndarray:
    c = np.maximum(cams, 0)
    low, high = c.min((2, 3), keepdims=True), c.max((2, 3), keepdims=True)
    return enlarge((c - low) / (high - low + 1e-6) * labels[:, :, None, None], size)


def seg_label(cams, labels, out_hw, **_) -> dict:
    out = segment(cams, labels, out_hw)
    return {
        "out": out,
        "with_background": np.concatenate([out, (1 - out.max(1, keepdims=True)) ** 10], 1),
    }


def draw_toy(rng, B: int, sizes, H: int, W: int, pools) -> dict:
    made = {"images": 1.5 * rng.normal(size=(B, 3, H, W)), "labels": label_rows(rng, B, len(sizes))}
    made |= {"k_list": np.array(sizes), "pools": np.array(pools)}
    for s, pool in enumerate(pools, 1):
        positions = H // pool, W // pool
        made[f"W{s}"] = 2 * rng.normal(size=(sum(sizes), 3))
        made[f"P{s}"], made[f"B{s}"] = (
            rng.normal(size=positions),
            0.5 * rng.normal(size=(sum(sizes), *positions)),
        )
    return made


def toy(images, pools, arrays) -> list[np.ndarray]:
    """The maps of the four stages."""
    maps = []
    for s, pool in enumerate(pools, 1):
        B, _, H, W = images.shape
        positions = images.reshape(B, 3, H // pool, pool, W // pool, pool).mean((3, 5))
        maps.append(
            np.einsum("sc,bchw->bshw", arrays[f"W{s}"], positions) * arrays[f"P{s}"]
            + arrays[f"B{s}"]
        )
    return maps


def draw_fuse(rng, **shapes) -> dict:
    return draw_toy(rng, **shapes) | {"palette": rng.permutation(256)[:18].reshape(6, 3)}


def fuse(images, labels, k_list, pools, palette, **arrays) -> dict:
    maps = toy(images, pools, arrays)
    seg = [segment(merge(m, k_list, "max"), labels, images.shape[2:]) for m in maps]
    fused = sum(w * s for w, s in zip(FUSION, seg))
    mask = fused.argmax(1).astype(np.uint8)
    return {f"seg{s}": value for s, value in enumerate(seg, 1)} | {
        "fused": fused,
        "argmax": mask,
        "png": mask,
    }


def draw_validate_tta(rng, **shapes) -> dict:
    made = draw_toy(rng, **shapes)
    (B, _, H, W), C = made["images"].shape, len(made["k_list"])
    flip, factor = (np.array(column) for column in zip(*VIEWS))
    return made | {
        "gt": rng.integers(C + 1, size=(B, H, W)),
        "aug_flip": flip,
        "aug_factor": factor,
    }


def validate_tta(images, labels, gt, k_list, pools, aug_flip, aug_factor, **arrays) -> dict:
    calls = [toy(images, pools, arrays)]
    fused = 0
    for flip, factor in zip(aug_flip, aug_factor):
        calls.append(toy(factor * (images[..., ::-1] if flip else images), pools, arrays))
        for weight, m in zip(FUSION, calls[-1]):
            seg = segment(merge(m, k_list, "max"), labels, images.shape[2:])
            fused = fused + weight * (seg[..., ::-1] if flip else seg) / len(aug_flip)
    out = {
        f"raw_cam{s}": np.stack([call[s - 1] for call in calls], 1)
        for s in range(1, len(pools) + 1)
    }
    mask = fused.argmax(1).astype(np.uint8)
    logits = [merge(m.mean((2, 3)), k_list, "max") for m in calls[0]]
    right = (logits[-1] > 0) == (labels > 0)
    bce = [(np.logaddexp(0, x) - labels * x).mean() for x in logits]
    counts = confusion(gt, mask, labels.shape[1] + 1)
    return (
        out
        | {k: counts[k] for k in ("mat", "mat_2x2", "iou")}
        | {
            "fused": fused,
            "argmax": mask,
            "all_cls_acc4": 100 * right.all(1).mean(),
            "avg_cls_acc4": 100 * right.mean(),
            "cls_loss": sum(w * b for w, b in zip(LEVELS, bce)),
        }
    )


# Clusters, scores, steps


def draw_kmeans(rng, n: int, d: int, k: int, max_iter: int, unit_rows: bool = True) -> dict:
    X = rng.normal(size=(n, d)) + 2 * rng.normal(size=(k, d))[rng.integers(k, size=n)]
    init = np.random.RandomState(42).choice(n, k, replace=False)
    return {"X": unit(X) if unit_rows else X, "k": k, "max_iter": max_iter, "init_index": init}


def kmeans(X, k, max_iter, init_index, **_) -> dict:
    centers, steps = X[init_index], 0
    for _ in range(int(max_iter)):
        steps += 1
        # one product after the other: equal centres must give equal numbers, and the first of them
        # wins
        similarities = np.array([[(unit(x) * unit(c)).sum() for c in centers] for x in X])
        labels, before = similarities.argmax(1), centers
        means = [X[labels == j].mean(0) if (labels == j).any() else None for j in range(k)]
        centers = np.array([c if m is None else unit(m) for c, m in zip(before, means)])
        if (np.abs(before - centers) <= 1e-8 + 1e-5 * np.abs(centers)).all():
            break
    return {"labels": labels, "similarities": similarities, "centers": centers, "n_iter": steps}


def draw_confusion(rng, shape, num_classes: int, absent: int = -1, strange: int = 0) -> dict:
    """absent: a class that neither mask shows; strange: pixels of the truth that are 255."""
    gt, pred = rng.integers(num_classes, size=(2, *shape))
    pred = np.where(rng.random(shape) < 0.6, gt, pred)
    gt, pred = (np.where(m == absent, 0, m) for m in (gt, pred))
    gt.flat[rng.permutation(gt.size)[:strange]] = 255
    return {"gt": gt, "pred": pred, "num_classes": num_classes}


def count(gt, pred, n: int) -> np.ndarray:
    mat = np.zeros((n, n), np.int64)
    for t, p in zip(gt.ravel(), pred.ravel()):
        if 0 <= t < n:
            mat[t, p] += 1
    return mat


def confusion(gt, pred, num_classes, **_) -> dict:
    mat, two = (
        count(gt, pred, int(num_classes)),
        count((gt != 0).astype(int), (pred != 0).astype(int), 2),
    )
    hits, row, column = np.diag(mat), mat.sum(1), mat.sum(0)
    with np.errstate(invalid="ignore"):
        iou = hits / (row + column - hits)
        return {
            "mat": mat,
            "mat_2x2": two,
            "acc_global": hits.sum() / mat.sum(),
            "acc": hits / row,
            "iou": iou,
            "dice": 2 * hits / (row + column),
            "dice_2x2": 2 * np.diag(two) / (two.sum(0) + two.sum(1)),
            "miou_first_n_minus_1": iou[:-1].mean(),
        }


def draw_lr_schedule(
    rng, steps: int, warmup: int, max_iter: int, power: float, ratio: float
) -> dict:
    params = np.array([2e-3, warmup, max_iter, power, ratio, 0.02, 0.9, 0.99, 1e-8])
    return {"params": params, "w0": rng.normal(size=4), "grads": rng.normal(size=(steps, 4))}


def lr_schedule(params, w0, grads, **_) -> dict:
    lr0, warmup, max_iter, power, ratio, decay, beta1, beta2, eps = params
    rates, rows, w, m, v = [], [], w0.astype(float), 0, 0
    for t, g in enumerate(grads.astype(float)):
        if t < warmup:
            rate = lr0 * (1 - (1 - t / warmup) * (1 - ratio))
        elif t < max_iter:
            rate = lr0 * (1 - (t - warmup) / max_iter) ** power
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        step = m / (1 - beta1 ** (t + 1)) / (np.sqrt(v / (1 - beta2 ** (t + 1))) + eps)
        w = w * (1 - rate * decay) - rate * step
        rates.append(rate)
        rows.append(w)
    return {"lr": np.array(rates), "w": np.array(rows)}


# Head and input


def draw_prototype_cam_head(rng, B: int, S: int, D: int, hidden: int, stages) -> dict:
    """stages: (channels, h, w) of each."""
    made = {"prototypes": unit(rng.normal(size=(S, D)))}
    for i, (channels, h, w) in enumerate(stages, 1):
        made[f"feat{i}"] = rng.normal(size=(B, channels, h, w)) * rng.uniform(0.5, 2)
        made[f"fc1_w{i}"], made[f"fc1_b{i}"] = (
            rng.normal(size=(hidden, D)),
            0.1 * rng.normal(size=hidden),
        )
        made[f"fc2_w{i}"], made[f"fc2_b{i}"] = (
            rng.normal(size=(channels, hidden)) / 5,
            0.1 * rng.normal(size=channels),
        )
        made[f"scale{i}"] = rng.uniform(2, 15, 1)
    return made


def prototype_cam_head(prototypes, **given) -> dict:
    out, stages = {}, sum(name.startswith("feat") for name in given)
    for i in range(1, stages + 1):
        hidden = np.maximum(prototypes @ given[f"fc1_w{i}"].T + given[f"fc1_b{i}"], 0)
        t = hidden @ given[f"fc2_w{i}"].T + given[f"fc2_b{i}"]  # (S, C_i)
        cam = given[f"scale{i}"] * np.einsum("bchw,sc->bshw", unit(given[f"feat{i}"], 1), t)
        out |= {
            f"cam{i}": cam,
            f"cls{i}": cam.mean((2, 3)),
            f"cam{i}_requires_grad": int(i == stages),
        }
    return out


def draw_preprocess(rng, H: int, W: int) -> dict:
    rgb, mask = rng.integers(256, size=(H, W, 3)), rng.choice([1, 4], (H, W))
    mask[H // 2, W // 2] = 3  # one pixel is enough
    return {
        "rgb": rgb,
        "mask": mask,
        "mean": rng.uniform(0.4, 0.7, 3),
        "std": rng.uniform(0.15, 0.25, 3),
    }


def preprocess(rgb, mask, mean, std, **_) -> dict:
    bgr = rgb[:, :, ::-1] / 255  # (H, W, 3)
    present = [int((mask == c).any()) for c in range(4)]
    return {
        "tensor": ((bgr - mean) / std).transpose(2, 0, 1),
        "label_from_mask": np.array(present),
        "mask_out": mask,
        "train_label_0110": np.array([0, 1, 1, 0]),
    }


KINDS = {
    "infonce": (draw_infonce, infonce),
    "infonce_edge": (draw_infonce_edge, infonce_edge),
    "pair_features": (draw_pair_features, pair_features),
    "merge_predictions": (draw_merge_predictions, merge_predictions),
    "merge_cams": (draw_merge_cams, merge_cams),
    "expand_labels": (draw_expand_labels, expand_labels),
    "positive_selection": (draw_positive_selection, positive_selection),
    "mask_adapter": (draw_mask_adapter, mask_adapter),
    "masking": (draw_masking, masking),
    "seg_label": (draw_seg_label, seg_label),
    "fuse": (draw_fuse, fuse),
    "validate_tta": (draw_validate_tta, validate_tta),
    "kmeans": (draw_kmeans, kmeans),
    "confusion": (draw_confusion, confusion),
    "lr_schedule": (draw_lr_schedule, lr_schedule),
    "prototype_cam_head": (draw_prototype_cam_head, prototype_cam_head),
    "preprocess": (draw_preprocess, preprocess),
}


def outputs(name: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What follows from the inputs of one case of a kind; other keys in `given` play no part."""
    exact = {k: v.astype(float) if np.asarray(v).dtype.kind == "f" else v for k, v in given.items()}
    return {k: np.asarray(v) for k, v in KINDS[name][1](**exact).items()}


def make(name: str, seed: int, **shapes) -> dict[str, np.ndarray]:
    """One case of a kind under the keys of its file, inputs and outputs; shapes: those of its draw
    function."""
    drawn = {
        k: np.asarray(v) for k, v in KINDS[name][0](np.random.default_rng(seed), **shapes).items()
    }
    return drawn | outputs(name, drawn)
