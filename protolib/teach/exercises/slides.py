"""Exercises of notebook 08: windows of a slide, and areas."""

import numpy as np
import shapely

from protolib.teach.exercises.judge import exercise
from protolib.windows import smooth

rng = np.random.default_rng(8)


def mixed(left, right, weight):
    """The overlap of two windows, the left one's share of it given."""
    half = len(left) // 2
    return left[half:] * weight + right[:half] * (1 - weight)


@exercise(
    "which half of the left window is which half of the right one, and who fades out?",
    inputs=[
        (np.array([0.9, 0.8, 0.6, 0.1]), np.array([0.3, 0.5, 0.7, 0.2])),
        (rng.random(10), rng.random(10)),
        (rng.random(32).astype(np.float32), rng.random(32).astype(np.float32)),
        (rng.random(24)[::2], rng.random(24)[1::2]),  # not contiguous
    ],
    slips={
        "a mean trusts the border of a window as much as its middle": lambda a, b: mixed(a, b, 0.5),
        "the weights are the wrong way round: the left window fades out here": lambda a, b: mixed(
            a, b, smooth(len(a))[: len(a) // 2]
        ),
        "the left window's second half meets the right one's first; here they are swapped": (
            lambda a, b: mixed(b, a, smooth(len(a))[len(a) // 2 :])
        ),
        "this is the left window alone: a seam where it ends": lambda a, b: a[len(a) // 2 :],
        "this is the right window alone: a seam where it begins": lambda a, b: b[: len(b) // 2],
        "a straight fade: use the weights of windows.smooth": lambda a, b: mixed(
            a, b, 1 - (np.arange(len(a) // 2) + 0.5) / (len(a) // 2)
        ),
        "a hard step in the middle is a seam": lambda a, b: mixed(
            a, b, np.arange(len(a) // 2) < len(a) // 4
        ),
        "half of the weights smooth(n), not smooth of half as many px": lambda a, b: mixed(
            a, b, smooth(len(a) // 2)
        ),
        "the weights add up to 1 already: this halves the sum": lambda a, b: (
            mixed(a, b, smooth(len(a))[len(a) // 2 :]) / 2
        ),
        "only the half that both saw: this has the length of a whole window": lambda a, b: (
            a * smooth(len(a)) + b * (1 - smooth(len(a)))
        ),
        "one half of smooth(n) for each window, not smooth(n // 2)": lambda a, b: mixed(
            a, b, 1 - smooth(len(a) // 2)
        ),
        "one half of the weights for each window: here both windows fade out": lambda a, b: (
            mixed(a, b, 0.5) * 2 * smooth(len(a))[len(a) // 2 :]
        ),
        "one half of the weights for each window: here both windows fade in": lambda a, b: (
            mixed(a, b, 0.5) * 2 * smooth(len(a))[: len(a) // 2]
        ),
        "a weight belongs to the middle of its px, as in windows.smooth, not to its border": (
            lambda a, b: mixed(a, b, np.cos(np.arange(len(a) // 2) * np.pi / len(a)) ** 2)
        ),
        "the weights are the squares of a sine, as windows.smooth gives them: no root": (
            lambda a, b: mixed(a, b, np.sqrt(smooth(len(a))[len(a) // 2 :]))
        ),
        "both windows run the same way: nothing is turned round": lambda a, b: mixed(
            a, b[: len(b) // 2][::-1], smooth(len(a))[len(a) // 2 :]
        ),
        "weights, not the higher of the two": lambda a, b: np.maximum(
            a[len(a) // 2 :], b[: len(b) // 2]
        ),
        "a hard step is a seam": lambda a, b: mixed(a, b, np.arange(len(a) // 2) < len(a) / 4),
        "the left window's SECOND half lies in the overlap": lambda a, b: mixed(
            np.roll(a, len(a) // 2), b, smooth(len(a))[len(a) // 2 :]
        ),
        "the right window's FIRST half lies in the overlap": lambda a, b: mixed(
            a, np.roll(b, len(b) // 2), smooth(len(a))[len(a) // 2 :]
        ),
        "weights, not the lower of the two": lambda a, b: np.minimum(
            a[len(a) // 2 :], b[: len(b) // 2]
        ),
        "a straight fade from 1 to 0: use the weights of windows.smooth": lambda a, b: mixed(
            a, b, np.linspace(1, 0, len(a) // 2)
        ),
    },
)
def check_blend(left, right):
    """What two windows say together of the half that both saw: shares (n,) float along a row, the
    right one beginning in the middle of the left one -> (n // 2,) float. As windows.smooth weighs.
    Right answer and check; notebook 08."""
    return mixed(left, right, smooth(len(left))[len(left) // 2 :])


def area(shell, holes=()):
    """The area of a polygon in square pixels."""
    return shapely.Polygon(shell, holes).area


def signed(ring, close=True):
    """The area of a ring, below 0 where it goes round the other way; close=False: the last
    edge is missing."""
    x, y = ring.T
    turn = x * np.roll(y, -1) - y * np.roll(x, -1)
    return (turn if close else turn[:-1]).sum() / 2


def terms(ring):
    """The shoelace sum of absolute terms."""
    x, y = ring.T
    return abs(x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2


def box(ring):
    """The area of the box around a ring."""
    return np.prod(ring.max(0) - ring.min(0))


def turned(ring):
    """The same ring, the other way round."""
    return ring[::-1]


SHELL = np.array([[0, 0], [0, 4000], [3000, 4000], [3000, 0]], float)
HOLE = np.array([[500, 500], [1500, 500], [500, 2500]], float)
OTHER = np.array([[2000, 1000], [2600, 1000], [2600, 1300]], float)


@exercise(
    "two corners and the origin span half of x1 * y2 - x2 * y1; what do all of them add up to?",
    inputs=[
        (SHELL, [HOLE], 0.5),
        (turned(SHELL), [OTHER, turned(HOLE)], 0.25),
        (np.array([[10, 20], [400, 60], [300, 900], [50, 500]], float), [], 2.0),
        # a hole that goes the same way round as its shell
        (SHELL + 100, [turned(HOLE) + 100], 0.23),
        # the outline turns inwards
        (
            np.array(
                [[0, 0], [800, 0], [800, 200], [90, 450], [800, 600], [800, 900], [0, 900]], float
            ),
            [],
            0.5,
        ),
        (np.array([[0.5, 0.25], [9.75, 0.5], [4.25, 8.5]]), [], 100.0),  # between the px
    ],
    slips={
        "the sum of x1 * y2 - x2 * y1 is twice the area": lambda s, h, m: (
            2 * area(s, h) * (m / 1000) ** 2
        ),
        "the holes are no tissue of this class: take their area off": lambda s, h, m: (
            area(s) * (m / 1000) ** 2
        ),
        "the holes are added; take their area off": lambda s, h, m: (
            (area(s) + sum(map(area, h))) * (m / 1000) ** 2
        ),
        "only the first hole is taken off": lambda s, h, m: area(s, h[:1]) * (m / 1000) ** 2,
        "this is in pixels; a pixel is mpp / 1000 mm wide, and as high": lambda s, h, m: area(s, h),
        "a pixel's area is its side squared": lambda s, h, m: area(s, h) * m / 1000,
        "a pixel's area in square micrometres is mpp squared": lambda s, h, m: area(s, h) * m / 1e6,
        "a mm has a thousand micrometres, a mm2 a million": lambda s, h, m: area(s, h) * m**2 / 1e3,
        "a sum below 0 says which way round a ring goes: the absolute value of each ring first": (
            lambda s, h, m: abs(signed(s) - sum(map(signed, h))) * (m / 1000) ** 2
        ),
        "the last corner is joined with the first: that edge is missing": lambda s, h, m: (
            (abs(signed(s, False)) - sum(abs(signed(own, False)) for own in h)) * (m / 1000) ** 2
        ),
        "these are the areas of boxes around the rings": lambda s, h, m: (
            (box(s) - sum(map(box, h))) * (m / 1000) ** 2
        ),
        "this is in square micrometres; a mm2 has a million": lambda s, h, m: area(s, h) * m**2,
        "the area of the box around it, not of the polygon": lambda s, h, m: (
            (box(s) - sum(map(area, h))) * (m / 1000) ** 2
        ),
        "which way round the shell goes gives only the sign of its sum: the absolute value": (
            lambda s, h, m: (signed(s) - sum(map(area, h))) * (m / 1000) ** 2
        ),
        "which way round a hole goes gives only the sign of its sum: the absolute value": (
            lambda s, h, m: (area(s) - sum(map(signed, h))) * (m / 1000) ** 2
        ),
        "the holes are in px too: scale them as the shell": lambda s, h, m: (
            area(s) * (m / 1000) ** 2 - sum(map(area, h))
        ),
        "all corners count: the last is missing": lambda s, h, m: (
            (area(s[:-1]) - sum(abs(signed(own[:-1])) for own in h)) * (m / 1000) ** 2
        ),
        "all holes are taken off, not only the largest": lambda s, h, m: (
            (area(s) - max(map(area, h), default=0)) * (m / 1000) ** 2
        ),
        "the corners stand in their order round the ring: nothing is sorted": lambda s, h, m: (
            (
                abs(signed(s[np.argsort(s[:, 0], kind="stable")]))
                - sum(abs(signed(own[np.argsort(own[:, 0], kind="stable")])) for own in h)
            )
            * (m / 1000) ** 2
        ),
        "the sum has a sign until it is whole: no absolute value of its terms": lambda s, h, m: (
            (terms(s) - sum(map(terms, h))) * (m / 1000) ** 2
        ),
        "the sign of a sum says which way round its ring goes: no area is below 0": (
            lambda s, h, m: (signed(s) - sum(map(signed, h))) * (m / 1000) ** 2
        ),
        "the sign of a sum says which way round its ring goes: abs() of each": (
            lambda s, h, m: (sum(map(signed, h)) - signed(s)) * (m / 1000) ** 2
        ),
        "which way round the shell goes only turns the sign of its sum: abs()": (
            lambda s, h, m: (-signed(s) - sum(map(area, h))) * (m / 1000) ** 2
        ),
    },
    points=2,
    only={
        "not where the outline turns inwards: all corners in their order, signs up to the end": (
            4,
        ),
        "not where corners lie between the px: nothing is rounded": (5,),
    },
)
def check_polygon_area(shell, holes, mpp):
    """The area of a polygon in mm2: corners (n, 2) float, x and y in px, either way round; a list
    of holes, each as the shell; micrometres per pixel -> float. As slides.predict's table of
    areas. Right answer and check; notebook 08."""
    return area(shell, holes) * (mpp / 1000) ** 2
