"""The matching loss against closed forms on a circle, hand-made maps, and the equations pair by
pair in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from protolib import matching
from protolib.maps import unit_range
from protolib.matching import keep, matching_loss, pool_foreground, sides, weights
from protolib.nets import encoders
from protolib.presets import PRESETS, Preset

P = replace(
    PRESETS["quick"],
    K=1,
    look="masked_image",
    pairs="classes",
    merge="mean",
    span="stretch",
    threshold="map",
    delta=0.5,
    fill="black",
    negatives="classes",
    pooling="pair",
    tau=0.5,
    theta_fg=1.0,
    theta_bg=0.5,
    align_corners=False,
    chunk=0,
)


def pairs_of(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs of a table (B, U) bool, row by row."""
    image, unit = chosen.nonzero(as_tuple=True)
    return image, unit


def circle(*degrees: float) -> torch.Tensor:
    """Unit vectors at these angles: (n, 2) float64."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def matching_terms(fg, bg, prototypes, classes, K, tau):
    """The kernel for pairs of an image and its one class."""
    chosen = F.one_hot(classes, len(prototypes) // K) > 0  # (P, C)
    masks = sides(pairs_of(chosen), chosen.long(), replace(P, K=K))
    return matching.matching_terms(fg, bg, prototypes, *masks, tau)


def softlog(x: float) -> float:
    return math.log1p(math.exp(x))


def projector(D: int, pixels: int, seed: int = 0):
    """A frozen encoder that is one random matrix: images (P, 3, H, W) -> unit rows (P, D),
    float64."""
    weights = torch.randn(
        3 * pixels, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return lambda images: F.normalize(images.flatten(1) @ weights, dim=1)


def case(B: int, C: int, K: int, side: int = 8, positions: int = 4, seed: int = 0):
    """Random images, maps, labels (each image with a class), prototypes and encoder, all in
    float64."""
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(B, 3, side, side, generator=g, dtype=torch.float64)
    maps = 3 * torch.randn(B, C, positions, positions, generator=g, dtype=torch.float64)
    labels = torch.randint(2, (B, C), generator=g)
    labels[torch.arange(B), torch.arange(B) % C] = 1
    prototypes = F.normalize(torch.randn(C * K, 5, generator=g, dtype=torch.float64), dim=1)
    return images, maps, labels, prototypes, projector(5, side * side)


def enlarge(m: np.ndarray, H: int, W: int) -> np.ndarray:
    """Bilinear, pixel centres at half steps, the border repeated, one pixel at a time."""
    h, w = m.shape
    out = np.empty((H, W))
    for y in range(H):
        for x in range(W):
            v, u = max((y + 0.5) * h / H - 0.5, 0), max((x + 0.5) * w / W - 0.5, 0)
            i, j = int(v), int(u)
            a, b, k, n = v - i, u - j, min(i + 1, h - 1), min(j + 1, w - 1)
            out[y, x] = (1 - a) * ((1 - b) * m[i, j] + b * m[i, n]) + a * (
                (1 - b) * m[k, j] + b * m[k, n]
            )
    return out


def slow_part(X: np.ndarray, weight: np.ndarray, fill: str) -> np.ndarray:
    """Eq. (5), pixel by pixel: the weighted part of an image (3, H, W)."""
    part = np.zeros_like(X)
    for c, y, x in np.ndindex(*X.shape):
        part[c, y, x] = weight[y, x] * X[c, y, x]
        if fill == "mean":
            part[c, y, x] += (1 - weight[y, x]) * (weight * X[c]).sum() / weight.sum()
    return part


def slow_map(maps: np.ndarray, label: np.ndarray, c: int, span: str) -> np.ndarray:
    """The map of class c in [0, 1], position by position."""
    if span == "stretch":
        return (maps[c] - maps[c].min()) / (maps[c].max() - maps[c].min())
    total = sum(np.exp(maps[k]) for k in np.flatnonzero(label))
    return np.exp(maps[c]) / total


def slow_loss(images, maps, labels, prototypes, encode, p: Preset) -> float:
    """Eq. (4-13), one pair, one prototype and one pixel after the other, exp and log as printed."""
    terms = []
    for X, image_maps, label in zip(images.numpy(), maps.numpy(), labels.numpy()):
        if p.span == "share" and label.sum() == 1:
            continue
        for c in np.flatnonzero(label):
            M = enlarge(slow_map(image_maps, label, c, p.span), *X.shape[1:])
            b = M >= p.delta * M.max()
            fg, bg = np.where(b, M, 0), np.where(b, 0, 1 - M)
            loss = 0.0
            for weight, ground, theta in ((fg, "F", p.theta_fg), (bg, "B", p.theta_bg)):
                if weight.max() == 0:
                    continue
                feature = encode(torch.from_numpy(slow_part(X, weight, p.fill))[None])[0]
                own = sum(float(feature @ v) for i, v in enumerate(prototypes) if i // p.K == c)
                other = sum(float(feature @ v) for i, v in enumerate(prototypes) if i // p.K != c)
                if ground == "B":  # means, and the other classes are the right answer
                    own, other = other / (len(prototypes) - p.K), own / p.K
                e_right, e_wrong = math.exp(own / p.tau), math.exp(other / p.tau)
                loss += theta * -math.log(e_right / (e_right + e_wrong))
            terms.append(loss)
    return sum(terms) / len(terms)


# Foreground and background


def test_the_threshold_is_a_share_of_each_map_s_own_maximum_and_the_edge_is_inside():
    strong = torch.tensor([[0.8, 0.4, 0.39], [0.1, 0.5, 0.0], [0.7, 0.2, 0.41]])
    wanted = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1]]).bool()
    assert pool_foreground(strong, 0.5).equal(wanted)
    assert pool_foreground(torch.stack([strong, strong / 100]), 0.5).equal(
        torch.stack([wanted, wanted])
    )
    assert pool_foreground(strong, 0.9).sum() == 1


def test_a_map_below_zero_has_no_foreground_until_it_is_stretched():
    below = torch.tensor([[-4.0, -1.0], [-3.0, -2.0]])
    assert not pool_foreground(below, 0.5).any()  # a share of a negative maximum lies above it
    assert pool_foreground(unit_range(below), 0.5).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_delta_that_is_no_share_is_refused_by_name(delta):
    with pytest.raises(ValueError, match=r"delta = .*0 < delta < 1"):
        pool_foreground(torch.rand(2, 2), delta)


def test_the_weights_of_foreground_and_background_of_a_hand_made_map():
    M = torch.tensor([[1.0, 0.6], [0.4, 0.0]])
    fg, bg = weights(M, 0.5)
    torch.testing.assert_close(fg, torch.tensor([[1.0, 0.6], [0, 0]]))
    torch.testing.assert_close(bg, torch.tensor([[0, 0], [0.6, 1.0]]))
    stacked = weights(torch.stack([M, M / 2]), 0.5)  # each map has its own threshold
    torch.testing.assert_close(stacked[0][1], fg / 2)
    torch.testing.assert_close(stacked[1][1], torch.tensor([[0, 0], [0.8, 1.0]]))


def test_without_a_threshold_the_maps_weigh_both_sides_and_cut_neither():
    M = torch.tensor([[1.0, 0.6], [0.4, 0.0]])
    fg, bg = weights(M, 0.5, "none")
    assert torch.equal(fg, M) and torch.equal(bg, 1 - M)
    both = torch.stack([M, M / 4])[None]  # (1, 2, 2, 2): one threshold for the image is half of 1
    assert (
        weights(both, 0.5, "image")[0][0, 1].eq(0).all()
        and weights(both, 0.5, "map")[0][0, 1, 0, 0] == 0.25
    )


def test_black_keeps_the_weighted_image_and_nothing_else():
    image = torch.tensor([1.0, 0.5, 0.2])[:, None, None].expand(3, 2, 2)[None]
    weight = torch.tensor([[[1.0, 0.6], [0, 0]]])
    torch.testing.assert_close(keep(image, weight, "black"), image * weight[:, None])


def test_the_mean_fill_puts_the_colour_of_what_is_kept_where_nothing_is():
    image = torch.tensor([[[0.2, 0.8], [0.5, 0.9]]]).expand(3, 2, 2)[None]
    colour = (0.2 + 0.5 * 0.8) / 1.5
    kept = keep(image, torch.tensor([[[1.0, 0.5], [0.0, 0.0]]]), "mean")
    torch.testing.assert_close(
        kept[0, 0], torch.tensor([[0.2, 0.4 + colour / 2], [colour, colour]])
    )
    assert keep(image, torch.ones(1, 2, 2), "mean").equal(image)
    assert keep(image, torch.zeros(1, 2, 2), "mean").eq(0).all()


# The two terms


@pytest.mark.parametrize(
    "theta, phi, tau", [(0, 90, 1.0), (35, 120, 0.5), (200, 60, 0.1), (90, 180, 2.0)]
)
def test_two_prototypes_on_a_circle_have_a_closed_form(theta, phi, tau):
    own, other, f = 1.0, math.radians(phi), math.radians(theta)
    prototypes, feature = circle(0, phi), circle(theta)
    fgs, bgs = matching_terms(feature, feature, prototypes, torch.tensor([0]), K=1, tau=tau)
    gap = (math.cos(f - other) - math.cos(f) * own) / tau
    assert fgs.item() == pytest.approx(softlog(gap), rel=1e-12)
    assert bgs.item() == pytest.approx(softlog(-gap), rel=1e-12)


def test_half_way_between_two_prototypes_both_terms_are_log_2():
    fgs, bgs = matching_terms(
        circle(45), circle(45), circle(0, 90), torch.tensor([1]), K=1, tau=0.07
    )
    assert fgs.item() == pytest.approx(math.log(2), rel=1e-12)
    assert bgs.item() == pytest.approx(math.log(2), rel=1e-12)


def test_foreground_sums_and_background_averages_its_prototypes():
    # class 0 at 0 and 60 degrees, classes 1 and 2 at 90, 180 and 270, 270; the feature at 0:
    # cosines 1, .5, 0, -1, 0, 0
    prototypes = circle(0, 60, 90, 180, 270, 270)
    fgs, bgs = matching_terms(circle(0), circle(0), prototypes, torch.tensor([0]), K=2, tau=1.0)
    assert fgs.item() == pytest.approx(softlog(-1 - 1.5), rel=1e-12)
    assert bgs.item() == pytest.approx(softlog(0.75 + 0.25), rel=1e-12)


def test_each_pair_has_the_prototypes_of_its_own_class():
    prototypes = circle(0, 10, 100, 130, 220, 250)
    fg, bg, classes = circle(5, 115, 235), circle(115, 235, 5), torch.tensor([0, 1, 2])
    together = matching_terms(fg, bg, prototypes, classes, K=2, tau=0.3)
    for i in range(3):  # with its own class moved to the front each pair gives the same alone
        rolled = prototypes.roll(-2 * i, 0)
        alone = matching_terms(
            fg[i : i + 1], bg[i : i + 1], rolled, torch.tensor([0]), K=2, tau=0.3
        )
        torch.testing.assert_close(
            torch.stack(together)[:, i], torch.cat(alone), rtol=1e-12, atol=0
        )


def test_a_temperature_of_a_thousandth_does_not_overflow():
    prototypes = circle(0, 180)
    fgs, bgs = matching_terms(circle(180), circle(0), prototypes, torch.tensor([0]), K=1, tau=1e-3)
    assert fgs.item() == pytest.approx(2000, rel=1e-12) and bgs.item() == pytest.approx(
        2000, rel=1e-12
    )
    with pytest.raises(OverflowError):  # as printed it does
        math.exp(2 / 1e-3)
    right, _ = matching_terms(circle(0), circle(0), prototypes, torch.tensor([0]), K=1, tau=1e-3)
    assert right.item() == 0.0


# The loss


@pytest.mark.parametrize("fill", ["black", "mean"])
@pytest.mark.parametrize("span, delta", [("stretch", 0.3), ("share", 0.6)])
@pytest.mark.parametrize("C, K", [(2, 1), (3, 2), (4, 3)])
def test_the_loss_equals_the_equations_walked_pair_by_pair(C, K, span, delta, fill):
    images, maps, labels, prototypes, encode = case(6, C, K, seed=C)
    labels[-1] = 1  # at least one patch of several classes
    p = replace(P, K=K, span=span, fill=fill, delta=delta, theta_bg=0.7)
    fast = matching_loss(images, maps, labels, prototypes, encode, p).item()
    slow = slow_loss(images, maps, labels, prototypes, encode, p)
    assert fast == pytest.approx(slow, rel=1e-10)


def test_the_loss_is_the_mean_over_pairs_of_the_weighted_terms():
    images, maps, labels, prototypes, encode = case(3, 3, 1)
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    single = []
    for i, c in ((0, 0), (1, 1), (1, 2)):
        only = F.one_hot(torch.tensor([c]), 3)
        one = images[i : i + 1], maps[i : i + 1], only
        single.append(matching_loss(*one, prototypes, encode, P))
    whole = matching_loss(images, maps, labels, prototypes, encode, P)
    torch.testing.assert_close(whole, torch.stack(single).mean(), rtol=1e-12, atol=0)
    fg, bg = (
        matching_loss(images, maps, labels, prototypes, encode, replace(P, theta_fg=a, theta_bg=b))
        for a, b in ((1, 0), (0, 1))
    )
    torch.testing.assert_close(whole, fg + 0.5 * bg, rtol=1e-12, atol=0)


def test_the_loss_ignores_scale_and_offset_of_a_map():
    images, maps, labels, prototypes, encode = case(4, 3, 2)
    p = replace(P, K=2)
    once = matching_loss(images, maps, labels, prototypes, encode, p)
    moved = matching_loss(images, 4 * maps - 9, labels, prototypes, encode, p)
    torch.testing.assert_close(once, moved, rtol=1e-12, atol=0)


def test_shares_ignore_what_moves_all_classes_of_a_position_and_patches_of_one_class():
    images, maps, _, prototypes, encode = case(3, 3, 2)
    p = replace(P, K=2, span="share")
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1]])
    once = matching_loss(images, maps, labels, prototypes, encode, p)
    moved = matching_loss(images, maps + maps[:1, :1], labels, prototypes, encode, p)
    torch.testing.assert_close(once, moved, rtol=1e-12, atol=0)
    rows = [0, 2]
    mixed = matching_loss(images[rows], maps[rows], labels[rows], prototypes, encode, p)
    torch.testing.assert_close(once, mixed, rtol=1e-12, atol=0)


def test_without_pairs_the_loss_is_0_and_still_has_a_graph():
    images, maps, labels, prototypes, _ = case(2, 3, 1)
    maps.requires_grad_()
    # the encoder is not called
    loss = matching_loss(images, maps, labels * 0, prototypes, pytest.fail, P)
    loss.backward()
    assert loss.item() == 0 and maps.grad.eq(0).all()


def test_one_encoder_pass_for_all_foregrounds_and_backgrounds():
    images, maps, _, prototypes, encode = case(4, 3, 2)
    labels = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    seen = []

    def embed(x):
        seen.append(tuple(x.shape))
        return encode(x)

    matching_loss(images, maps, labels, prototypes, embed, replace(P, K=2))
    assert seen == [(2 * 6, 3, 8, 8)]


# Gradients


@pytest.mark.parametrize("fill", ["black", "mean"])
@pytest.mark.parametrize("span", ["stretch", "share"])
def test_the_gradient_of_the_maps_equals_finite_differences(span, fill):
    images, maps, _, prototypes, encode = case(2, 3, 2, side=6, positions=3)
    labels = torch.tensor([[1, 1, 0], [0, 1, 1]])
    maps.requires_grad_()

    p = replace(P, K=2, span=span, fill=fill)

    def loss(m):
        return matching_loss(images, m, labels, prototypes, encode, p)

    assert torch.autograd.gradcheck(loss, maps, eps=1e-6, atol=1e-8, rtol=1e-6)
    absent = torch.autograd.grad(loss(maps), maps)[0][labels == 0]
    assert len(absent) and absent.eq(0).all()  # an absent class's map takes no part


def test_an_empty_part_is_left_out_of_loss_and_gradient():
    images, maps, _, prototypes, encode = case(2, 2, 1)
    labels = torch.tensor([[1, 1], [1, 1]])
    maps[0] = 0.3  # one share for all positions: all foreground, no background
    maps.requires_grad_()
    seen, p = [], replace(P, span="share", theta_fg=0.0)

    def embed(x):
        seen.append(len(x))
        return encode(x)

    loss = matching_loss(images, maps, labels, prototypes, embed, p)
    assert seen == [2 * 2 + 2]  # foregrounds of both images, backgrounds of the second
    alone = matching_loss(images[1:], maps[1:], labels[1:], prototypes, encode, p)
    # the pair still counts in the mean
    torch.testing.assert_close(loss, alone / 2, rtol=1e-12, atol=0)
    loss.backward()
    assert maps.grad[0].eq(0).all() and maps.grad[1].abs().sum() > 0


@pytest.mark.parametrize("fill", ["black", "mean"])
def test_maps_without_any_foreground_give_a_loss_of_0_and_a_finite_gradient(fill):
    encoder = encoders.load("lite0")
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = torch.full((1, 2, 4, 4), 0.3, requires_grad=True)  # stretched it is 0 everywhere
    prototypes = F.normalize(
        torch.randn(2, encoder.D, generator=torch.Generator().manual_seed(1)), dim=1
    )
    labels, p = torch.tensor([[1, 0]]), replace(P, fill=fill)
    loss = matching_loss(
        images, maps, labels, prototypes, lambda x: F.normalize(encoder(x), dim=1), p
    )
    loss.backward()
    assert loss.item() == 0 and maps.grad.eq(0).all()


def test_the_kernel_has_no_loop_over_pairs():
    import ast
    import inspect

    tree = ast.parse(
        inspect.getsource(matching.matching_loss) + inspect.getsource(matching.matching_terms)
    )
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While, ast.comprehension))]


# What the released code does otherwise; tests/test_golden.py holds its numbers


def test_a_shared_threshold_lets_one_strong_map_empty_the_others_of_its_image():
    maps = torch.tensor([[[8.0, 1.0]], [[3.0, 2.0]]])[None]  # (1, 2, 1, 2)
    assert pool_foreground(maps, 0.5).tolist() == [[[[True, False]], [[True, True]]]]
    assert pool_foreground(maps, 0.5, shared=True).tolist() == [[[[True, False]], [[False, False]]]]
    two = torch.cat([maps, maps / 8])  # another image has its own maximum
    assert pool_foreground(two, 0.5, shared=True)[1].equal(
        pool_foreground(maps, 0.5, shared=True)[0]
    )


def test_sub_classes_above_the_mean_of_a_present_class_are_selected():
    logits = torch.tensor([[1.0, 2.0, 6.0, -5.0, -1.0], [4.0, 4.0, 4.0, 0.0, 9.0]])
    labels = torch.tensor([[1, 1], [1, 0]])
    found = matching.select_subclasses(logits, labels, (3, 2), "mean")
    assert found.tolist() == [[False, False, True, False, True], [False] * 5]  # a tie is not above
    alone = matching.select_subclasses(
        torch.tensor([[3.0, 1.0]]), torch.tensor([[1, 1]]), (1, 1), "mean"
    )
    assert not alone.any()  # K = 1 selects nothing: the preset refuses it


def sides_of(unit: int, labels: list[int], **settings) -> list[list[int]]:
    """The indices of the positives and of the negatives of one pair, of K = 2."""
    p = replace(P, K=2, **settings)
    U = len(labels) * (2 if p.pairs == "subclasses" else 1)
    chosen = torch.arange(U)[None] == unit
    masks = sides(pairs_of(chosen), torch.tensor([labels]), p)
    return [mask[0].nonzero().flatten().tolist() for mask in masks]


def test_positives_and_negatives_of_pairs_of_classes_and_of_sub_classes():
    all_present = [1, 1, 1]
    assert sides_of(1, all_present, negatives="all") == [[2, 3], [0, 1, 4, 5]]
    sub = {"pairs": "subclasses"}
    # its sibling 2 is a negative only where all are
    assert sides_of(3, all_present, negatives="all", **sub) == [[3], [0, 1, 2, 4, 5]]
    assert sides_of(3, all_present, negatives="classes", **sub) == [[3], [0, 1, 4, 5]]


def test_negatives_of_present_classes_are_those_that_the_image_shows():
    # two images of three classes of two sub-classes: the first shows classes 0 and 2, the second 1
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    positives, negatives = sides(pairs_of(labels > 0), labels, replace(P, K=2, negatives="present"))
    # the pairs row by row: (0, class 0), (0, class 2), (1, class 1)
    assert positives.int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 1, 1, 0, 0],
    ]
    assert negatives.int().tolist() == [
        [0, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],  # alone, a class has nothing to be taken for
    ]
    sub = {"pairs": "subclasses", "negatives": "present"}
    assert sides_of(4, [1, 0, 1], **sub) == [[4], [0, 1]]


def test_a_product_is_stretched_in_each_colour_before_the_mask_hides_the_rest():
    image = torch.tensor([[[1.0, 2.0]], [[3.0, 3.0]], [[-1.0, 0.0]]])[None]  # (1, 3, 1, 2)
    found = matching.rescale(image, torch.tensor([[[2.0, 1.0]]]), torch.tensor([[[True, False]]]))
    # products (2, 2), (6, 3), (-2, 0): a constant becomes 0, then the second pixel is hidden
    torch.testing.assert_close(
        found, torch.tensor([[[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]]]), atol=1e-7, rtol=0
    )


def test_one_log_of_the_batch_is_not_the_mean_of_logs():
    # two pairs of one positive and one negative each: cosines 1 and 0, 0 and 1
    prototypes, features = circle(0, 90), circle(0, 90)
    first = torch.tensor([[True, False], [True, False]])
    fg, bg = matching.batch_terms(features, features, prototypes, first, ~first, tau=1.0)
    p = q = 1 + math.e
    assert fg.item() == pytest.approx(-math.log(p / (p + q)), rel=1e-12)
    assert bg.item() == pytest.approx(-math.log(q / (q + p)), rel=1e-12)
    per_pair = matching.matching_terms(features, features, prototypes, first, ~first, tau=1.0)[0]
    assert per_pair.mean().item() == pytest.approx((softlog(-1) + softlog(1)) / 2, rel=1e-12)


RELEASED = replace(
    P,
    K=2,
    pairs="subclasses",
    span="raw",
    threshold="image",
    fill="minmax",
    negatives="all",
    pooling="batch",
    tau=0.07,
    theta_bg=1.0,
    align_corners=True,
)


@pytest.mark.parametrize(
    "p", [replace(P, K=2), replace(P, K=2, span="share", fill="mean"), RELEASED]
)
def test_chunks_change_neither_the_loss_nor_its_gradient(p):
    images, maps, _, prototypes, encode = case(3, 3, 2)
    if p.pairs == "subclasses":
        maps = torch.cat([maps, maps.flip(3) - 0.1], dim=1)  # (B, S, h, w)
    labels, found = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]]), []
    for chunk in (0, 1, 4):
        leaf = maps.clone().requires_grad_()
        loss = matching_loss(images, leaf, labels, prototypes, encode, replace(p, chunk=chunk))
        found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert found[0][1].abs().sum() > 0
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-12, atol=1e-15)


def test_the_released_loss_has_a_gradient_that_equals_finite_differences():
    images, maps, _, prototypes, encode = case(2, 2, 2, side=6, positions=3)
    maps = torch.cat([maps, maps.flip(2) + 0.3], dim=1).requires_grad_()  # (2, S, 3, 3)
    labels = torch.tensor([[1, 1], [0, 1]])
    p = replace(RELEASED, tau=1.0)
    assert torch.autograd.gradcheck(
        lambda m: matching_loss(images, m, labels, prototypes, encode, p), maps, eps=1e-6, atol=1e-7
    )


def test_a_black_picture_whose_gradient_overflows_leaves_the_maps_alone():
    images, maps, _, prototypes, encode = case(2, 2, 2)
    maps = torch.cat([maps, maps.flip(3) + 0.3], dim=1)  # (2, S, h, w)
    # far below the half of its image's maximum: selected, and black
    maps[0, 2] = maps[0, 2].abs() / 100
    maps[0, 3] = maps[0, 2] - 1
    maps.requires_grad_()
    seen = []

    def steep(x):
        seen.append(x.detach())
        return encode(x) * x.sum((1, 2, 3)).sqrt()[:, None]  # infinitely steep where all is black

    labels = torch.tensor([[1, 1], [0, 1]])
    loss = matching_loss(images, maps, labels, prototypes, steep, RELEASED)
    grad = torch.autograd.grad(loss, maps)[0]
    assert (seen[0].amax((1, 2, 3)) == 0).any()
    assert loss.isfinite() and grad.isfinite().all() and grad.abs().sum() > 0


# Features under the map: masked pooling

POOLED = replace(P, look="masked_pooling", span="share", threshold="none", negatives="present")


def pooled_case(B: int = 4, C: int = 3, K: int = 2, seed: int = 0):
    """Random encoder maps of two levels, maps, labels and prototypes, all in float64."""
    g = torch.Generator().manual_seed(seed)
    levels = [torch.randn(B, D, n, n, generator=g).double() for D, n in ((3, 8), (2, 4))]
    maps = 2 * torch.randn(B, C, 4, 4, generator=g).double()
    labels = torch.randint(2, (B, C), generator=g)
    labels[torch.arange(B), torch.arange(B) % C] = 1
    labels[0] = 1
    prototypes = F.normalize(torch.randn(C * K, 5, generator=g).double(), dim=1)
    return levels, maps, labels, prototypes


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features, dim=1)


def slow_pooled(features: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Features (D,) of one image under one weight (h, w): level by level, position by position."""
    fine = enlarge(weight, *features[0].shape[1:])
    parts = []
    for level in features:
        D, h, w = level.shape
        block = fine.reshape(h, len(fine) // h, w, len(fine[0]) // w).mean((1, 3))
        sums = [sum(block[place] * level[d][place] for place in np.ndindex(h, w)) for d in range(D)]
        parts += [total / block.sum() for total in sums]
    return np.array(parts)


def slow_pooled_loss(levels, maps, labels, prototypes, p: Preset) -> float:
    """The matching loss under masked pooling, one pair after the other, exp and log as printed."""
    terms = []
    for b, label in enumerate(labels.numpy()):
        if label.sum() == 1:
            continue  # all foreground
        for c in np.flatnonzero(label):
            M = slow_map(maps[b].numpy(), label, c, "share")
            features, loss = [level[b].numpy() for level in levels], 0.0
            for weight, right_is_own, theta in ((M, True, p.theta_fg), (1 - M, False, p.theta_bg)):
                f = slow_pooled(features, weight)
                cosines = prototypes.numpy() @ f / np.linalg.norm(f)
                owner = np.arange(len(cosines)) // p.K
                own = cosines[owner == c]
                others = cosines[(owner != c) & (label[owner] > 0)]
                if right_is_own:
                    right, wrong = own.sum(), others.sum()
                else:
                    right, wrong = others.mean(), own.mean()
                e_right, e_wrong = math.exp(right / p.tau), math.exp(wrong / p.tau)
                loss += theta * -math.log(e_right / (e_right + e_wrong))
            terms.append(loss)
    return sum(terms) / len(terms)


def test_pooled_parts_equal_a_walk_over_pairs_levels_and_positions():
    levels, maps, labels, _ = pooled_case()
    shares, chosen = maps.sigmoid(), labels > 0
    shares[1, labels[1].argmax()] = 0  # an empty foreground
    parts, full = matching.pool_parts(levels, shares, pairs_of(chosen), POOLED)
    wanted, there = [], []
    for side in (shares, 1 - shares):
        for b, c in chosen.nonzero().tolist():
            there.append(side[b, c].max().item() > 0)
            features = [level[b].numpy() for level in levels]
            wanted.append(slow_pooled(features, side[b, c].numpy()) if there[-1] else parts[0] * 0)
    assert full.tolist() == there and not all(there)
    np.testing.assert_allclose(parts, np.stack(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_under_masked_pooling_equals_its_equations_walked_pair_by_pair(seed):
    levels, maps, labels, prototypes = pooled_case(6, seed=seed)
    p = replace(POOLED, K=2, theta_bg=0.7)
    fast = matching_loss(levels, maps, labels, prototypes, unit_rows, p).item()
    assert fast == pytest.approx(slow_pooled_loss(levels, maps, labels, prototypes, p), rel=1e-10)


def test_masked_pooling_with_a_cut_map_cuts_the_features_as_it_would_the_picture():
    # one level of one row of three positions with features a, b, a; the map says 1, .4, 0
    levels = [torch.tensor([[[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]])]  # (1, 2, 1, 3)
    maps = torch.tensor([[[[1.0, 0.4, 0.0]], [[0.0, 0.6, 1.0]]]])
    chosen = torch.tensor([[True, False]])
    p = replace(POOLED, threshold="map", delta=0.5)
    parts, full = matching.pool_parts(levels, maps, pairs_of(chosen), p)
    # foreground: the first position alone; background: .6 of the second and all of the third
    torch.testing.assert_close(parts, torch.tensor([[1.0, 0.0], [1 / 1.6, 0.6 / 1.6]]))
    assert full.tolist() == [True, True]


def halves() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """A patch whose left half looks like class 0 and whose right half like class 1: encoder maps,
    maps that say so, and the label."""
    left = torch.tensor([[1.0, 1, 0, 0]] * 4)
    levels = [torch.stack([left, 1 - left])[None].double()]  # (1, 2, 4, 4)
    right_map = torch.stack([left, 1 - left])[None].double() * 2 - 1  # logits 1 and -1
    return levels, right_map, torch.tensor([[1, 1]])


def test_the_right_map_has_less_loss_than_its_mirror_image():
    levels, right_map, labels = halves()
    prototypes = torch.eye(2).double()

    def loss(maps):
        return matching_loss(levels, maps, labels, prototypes, unit_rows, POOLED).item()

    mirrored, undecided = right_map.flip(3), right_map * 0
    assert loss(3 * right_map) < loss(right_map) < loss(undecided) < loss(mirrored)
    # both parts are the two prototypes' own mean: cosines equal, so each term is log 2
    assert loss(undecided) == pytest.approx(1.5 * math.log(2), rel=1e-12)


def test_the_gradient_raises_each_map_where_its_class_is_and_lowers_it_elsewhere():
    levels, right_map, labels = halves()
    prototypes = torch.eye(2).double()
    for maps in (right_map * 0, right_map.flip(3)):  # undecided, and wrong
        maps.requires_grad_()
        loss = matching_loss(levels, maps, labels, prototypes, unit_rows, POOLED)
        (grad,) = torch.autograd.grad(loss, maps)
        step = -grad[0]  # (2, 4, 4): what descent adds
        assert (step[0, :, :2] > 0).all() and (step[0, :, 2:] < 0).all()
        assert (step[1, :, :2] < 0).all() and (step[1, :, 2:] > 0).all()


def test_the_gradient_under_masked_pooling_equals_finite_differences():
    levels, maps, labels, prototypes = pooled_case(3)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: matching_loss(levels, m, labels, prototypes, unit_rows, replace(POOLED, K=2)),
        maps,
        eps=1e-6,
        atol=1e-8,
        rtol=1e-6,
    )


@pytest.mark.parametrize("look", ["masked_pooling", "positions"])
def test_under_shares_patches_of_one_class_have_a_loss_of_exactly_0(look):
    levels, maps, _, prototypes = pooled_case()
    maps.requires_grad_()
    labels, p = F.one_hot(torch.tensor([0, 1, 2, 1]), 3), replace(POOLED, K=2, look=look)
    for shown in (labels, labels * 0, labels[:0]):
        n = len(shown)
        seen = [level[:n] for level in levels]
        loss = matching_loss(seen, maps[:n], shown, prototypes, unit_rows, p)
        (grad,) = torch.autograd.grad(loss, maps)
        assert loss.item() == 0 and grad.eq(0).all()
    mixed = torch.cat([torch.tensor([[1, 1, 0]]), labels[1:]])
    both = matching_loss(levels, maps, mixed, prototypes, unit_rows, p)
    alone = matching_loss(
        [level[:1] for level in levels], maps[:1], mixed[:1], prototypes, unit_rows, p
    )
    torch.testing.assert_close(both, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("look", ["masked_pooling", "positions"])
def test_the_order_of_a_batch_and_the_names_of_the_classes_change_nothing(look):
    levels, maps, labels, prototypes = pooled_case(5)
    p = replace(POOLED, K=2, look=look)
    once = matching_loss(levels, maps, labels, prototypes, unit_rows, p)
    rows, classes = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    shuffled = matching_loss(
        [level[rows] for level in levels], maps[rows], labels[rows], prototypes, unit_rows, p
    )
    renamed = matching_loss(
        levels,
        maps[:, classes],
        labels[:, classes],
        prototypes.unflatten(0, (3, 2))[classes].flatten(0, 1),
        unit_rows,
        p,
    )
    torch.testing.assert_close(shuffled, once, rtol=1e-12, atol=0)
    torch.testing.assert_close(renamed, once, rtol=1e-12, atol=0)


def test_absent_classes_take_no_part_where_only_present_ones_are_negatives():
    levels, maps, _, prototypes = pooled_case(1)
    labels, p = torch.tensor([[1, 0, 1]]), replace(POOLED, K=2)
    once = matching_loss(levels, maps, labels, prototypes, unit_rows, p)
    other, moved = prototypes.clone(), maps.clone()
    other[2:4], moved[:, 1] = -prototypes[:2], 9.0
    same = matching_loss(levels, moved, labels, other, unit_rows, p)
    torch.testing.assert_close(same, once, rtol=1e-12, atol=0)
    with_all = replace(p, negatives="classes")
    assert matching_loss(levels, maps, labels, other, unit_rows, with_all).item() != once.item()


# Positions


def test_nearest_classes_by_hand():
    # two classes of two prototypes at 0, 90 and 180, 225 degrees; three positions in a row
    prototypes = circle(0, 90, 180, 225)
    features = circle(30, 200, 270).T.reshape(1, 2, 1, 3)
    found = matching.nearest_classes([features], prototypes, unit_rows, (2, 1, 3))
    of = lambda degrees: math.cos(math.radians(degrees))
    wanted = [[of(30), of(110), of(90)], [of(150), of(20), of(45)]]
    torch.testing.assert_close(
        found[0, :, 0], torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    assert not found.requires_grad


def test_nearest_classes_stand_where_their_features_do():
    levels, *_, prototypes = pooled_case(2)
    found = matching.nearest_classes(levels, prototypes, unit_rows, (3, 4, 4))  # (2, 3, 4, 4)
    for b, y, x in np.ndindex(2, 4, 4):
        # both levels at 4 x 4: the finer one between four of its positions
        fine = levels[0][b, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
        f = torch.cat([fine, levels[1][b, :, y, x]])  # (5,)
        cosines = prototypes @ f / f.norm()
        wanted = cosines.view(3, 2).amax(1)
        torch.testing.assert_close(found[b, :, y, x], wanted, rtol=1e-12, atol=1e-12)


def test_each_position_learns_the_present_class_of_its_nearest_prototype():
    # three classes of one prototype each, at 0, 120 and 240 degrees; the patch shows 0 and 2
    prototypes = circle(0, 120, 240)
    degrees = [10, 100, 250, 350, 230, 130, 0, 60, 295]  # of the nine positions, row by row
    # the nearest of classes 0 and 2; 100 and 130 lie nearest to the absent class 1
    target = [0, 0, 2, 0, 2, 2, 0, 0, 2]
    levels = [circle(*degrees).T.reshape(1, 2, 3, 3)]
    maps = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    maps.requires_grad_()
    labels = torch.tensor([[1, 0, 1]])
    p = replace(POOLED, look="positions")
    loss = matching_loss(levels, maps, labels, prototypes, unit_rows, p)
    m, terms = maps.detach()[0].flatten(1), []  # (3, 9)
    for i, t in enumerate(target):
        e = {c: math.exp(m[c, i]) for c in (0, 2)}  # the absent class has no share
        terms.append(-math.log(e[t] / sum(e.values())))
    assert loss.item() == pytest.approx(sum(terms) / 9, rel=1e-12)
    (grad,) = torch.autograd.grad(loss, maps)
    share = torch.softmax(m[[0, 2]], 0)  # (2, 9)
    hit = torch.tensor([[t == c for t in target] for c in (0, 2)])
    torch.testing.assert_close(grad[0, [0, 2]].flatten(1), (share - hit.double()) / 9)
    assert grad[0, 1].eq(0).all()


# What a small fault would change


def test_without_a_threshold_both_sides_are_masks():
    for side in matching.regions(torch.rand(1, 2, 3, 3), 0.5, "none"):
        assert side.dtype == torch.bool and side.all()


def test_the_mean_colour_of_little_is_the_colour_of_that_little():
    image = torch.tensor([[[0.2, 0.8], [0.5, 0.9]]]).expand(3, 2, 2)[None]
    kept = keep(image, torch.tensor([[[0.0, 0.25], [0.0, 0.0]]]), "mean")  # a quarter of a pixel
    torch.testing.assert_close(kept, torch.full((1, 3, 2, 2), 0.8))


def test_a_stretched_product_stays_below_1():
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    found = matching.rescale(image, torch.ones(1, 4, 4).double(), torch.ones(1, 4, 4).bool())
    span = image.amax((2, 3)) - image.amin((2, 3))
    # 1e-8 is added to what is divided by: it can never be 0
    torch.testing.assert_close(found.amax((2, 3)), span / (span + 1e-8), rtol=1e-14, atol=0)


def test_a_pair_without_negatives_is_compared_with_its_own_prototypes_alone():
    own, none = torch.tensor([[True, True]]), torch.tensor([[False, False]])
    fgs, bgs = matching.matching_terms(circle(0), circle(0), circle(0, 60), own, none, 1.0)
    assert fgs.item() == pytest.approx(softlog(-1.5), rel=1e-12)
    assert bgs.item() == pytest.approx(softlog(0.75), rel=1e-12)


def test_a_zero_row_has_cosine_0_with_everything_in_the_loss_of_a_batch():
    prototypes, own = circle(0, 90), torch.tensor([[True, False]])
    zero = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    fg, bg = matching.batch_terms(zero, zero, prototypes, own, ~own, tau=0.5)
    for term in (fg, bg):
        assert term.item() == pytest.approx(math.log(2), rel=1e-12)
    (grad,) = torch.autograd.grad(fg, zero)
    # softplus' slope, a half, times the difference of the prototypes over tau
    torch.testing.assert_close(grad, (prototypes[1] - prototypes[0])[None])


def test_the_length_of_a_feature_plays_no_part_in_the_loss_of_a_batch():
    prototypes, own = circle(0, 90), torch.tensor([[True, False]])
    short, long = (
        torch.stack(
            matching.batch_terms(n * circle(30), n * circle(70), prototypes, own, ~own, 0.5)
        )
        for n in (0.25, 8)
    )
    torch.testing.assert_close(short, long, rtol=1e-12, atol=0)
    # cosines .866 and .5 of the foreground, .342 and .940 of the background, over tau
    of = lambda degrees: math.cos(math.radians(degrees))
    assert short[0].item() == pytest.approx(softlog((of(60) - of(30)) / 0.5), rel=1e-12)
    assert short[1].item() == pytest.approx(softlog((of(70) - of(20)) / 0.5), rel=1e-12)


def test_a_batch_without_pairs_has_loss_0_with_a_graph():
    none = torch.zeros(0, 2, requires_grad=True)
    masks = torch.zeros(0, 2, dtype=torch.bool)
    fg, bg = matching.batch_terms(none, 2 * none, torch.eye(2), masks, masks, 1.0)
    assert fg.item() == bg.item() == 0 and fg.requires_grad and bg.requires_grad


@pytest.mark.filterwarnings("error")
def test_pictures_are_encoded_in_parts_only_where_they_are_more_than_a_chunk():
    seen = []

    def encode(pictures):
        seen.append(len(pictures))
        return pictures.flatten(1)

    pictures = torch.rand(5, 3, 2, 2, requires_grad=True)
    for chunk, parts in ((0, [5]), (5, [5]), (6, [5]), (2, [2, 1, 2]), (4, [1, 4])):
        seen.clear()
        assert matching.encode_all(encode, pictures, chunk).equal(pictures.flatten(1))
        assert seen == parts


def test_the_loss_of_a_batch_weighs_its_two_terms():
    images, maps, _, prototypes, encode = case(2, 2, 2, side=6, positions=3)
    maps = torch.cat([maps, maps.flip(2) + 0.3], dim=1)  # (2, S, 3, 3)
    labels = torch.tensor([[1, 1], [0, 1]])
    whole, fg, bg = (
        matching_loss(images, maps, labels, prototypes, encode, replace(RELEASED, **thetas))
        for thetas in (
            {"theta_fg": 0.5, "theta_bg": 3.0},
            {"theta_fg": 1.0, "theta_bg": 0.0},
            {"theta_fg": 0.0, "theta_bg": 1.0},
        )
    )
    assert fg > 0 and bg > 0
    torch.testing.assert_close(whole, 0.5 * fg + 3 * bg, rtol=1e-12, atol=0)


def test_the_negatives_of_a_background_count_as_a_mean_and_those_of_a_foreground_as_a_sum():
    prototypes, own = circle(0, 90, 200), torch.tensor([[True, False, False]])
    fg, bg = matching.batch_terms(circle(30), circle(70), prototypes, own, ~own, tau=0.5)
    e = lambda degrees: math.exp(math.cos(math.radians(degrees)) / 0.5)
    assert fg.item() == pytest.approx(math.log1p((e(60) + e(170)) / e(30)), rel=1e-12)
    # the logarithm of a count is a float32
    assert bg.item() == pytest.approx(math.log1p(e(70) / ((e(20) + e(130)) / 2)), rel=1e-7)


@pytest.mark.parametrize("kept, second", [(True, 1 / 3), (False, 0.25)])
def test_a_cut_picture_s_background_is_weighed_by_what_the_map_leaves(kept, second, monkeypatch):
    asked = []
    monkeypatch.setattr(matching, "rescale", lambda X, M, b: asked.append((M, b)) or X)
    maps = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    p = replace(P, fill="minmax", align_corners=kept)
    pair = torch.tensor([0]), torch.tensor([0])
    matching.cut_out(torch.rand(1, 3, 4, 4), maps, pair, p)
    row = torch.tensor([0, second, 1 - second, 1])  # 2 positions drawn out to 4 px
    (fg, _), (bg, _) = asked
    torch.testing.assert_close(fg[0], row.expand(4, 4))
    torch.testing.assert_close(bg[0], 1 - row.expand(4, 4))


def test_positions_of_processes_count_by_their_mixed_patches(monkeypatch):
    features, labels = torch.randn(3, 2, 2, 2), torch.tensor([[1, 1], [1, 0], [1, 1]])
    given = [features], torch.randn(3, 2, 2, 2), labels, circle(0, 90).float(), lambda x: x
    whole, asked = matching.position_loss(*given), []
    monkeypatch.setattr(matching, "weight", lambda n, like: asked.append(n.item()) or 0.5)
    torch.testing.assert_close(matching.position_loss(*given), whole / 2)
    assert asked == [2]


def test_pairs_of_processes_count_by_their_number(monkeypatch):
    maps, labels = torch.randn(3, 2, 2, 2), torch.tensor([[1, 1], [1, 0], [1, 1]])
    seen = [torch.randn(3, 2, 2, 2)]
    embed, p = lambda x: F.normalize(x, dim=1), replace(P, look="masked_pooling")
    whole = matching_loss(seen, maps, labels, circle(0, 90).float(), embed, p)
    asked = []
    monkeypatch.setattr(matching, "weight", lambda n, like: asked.append(n) or 0.5)
    found = matching_loss(seen, maps, labels, circle(0, 90).float(), embed, p)
    torch.testing.assert_close(found, whole / 2)
    assert asked == [5]


def test_nobody_learns_from_what_is_known_before_any_training():
    prototypes = circle(0, 90).float().requires_grad_()
    found = matching.nearest_classes([torch.rand(1, 2, 2, 2)], prototypes, lambda x: x, (2, 2, 2))
    assert found.shape == (1, 2, 2, 2) and not found.requires_grad


def test_of_a_batch_foregrounds_come_before_backgrounds():
    g = torch.Generator().manual_seed(0)
    maps, seen = torch.randn(2, 2, 4, 4, generator=g), [torch.randn(2, 2, 4, 4, generator=g)]
    labels, prototypes = torch.tensor([[1, 1], [1, 0]]), circle(0, 90).float()
    p = replace(P, look="masked_pooling", pooling="batch", theta_fg=1.0, theta_bg=0.25)
    embed = lambda x: F.normalize(x, dim=1)
    found = matching_loss(seen, maps, labels, prototypes, embed, p)
    pairs = pairs_of(labels > 0)
    parts, _ = matching.pool_parts(seen, unit_range(maps), pairs, p)
    fg, bg = embed(parts[:3]), embed(parts[3:])
    l_fg, l_bg = matching.batch_terms(fg, bg, prototypes, *sides(pairs, labels, p), p.tau)
    torch.testing.assert_close(found, l_fg + 0.25 * l_bg)
