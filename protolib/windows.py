"""How an image of any size is cut to windows that overlap, and how what they say is put together
again.

A window is a patch as the networks learned from them. They could read a larger one, being
convolutions, but they never saw tissue without the border of a patch close by: on phantom patches
of 256 px, networks that learned from 64 px (preset lean, seed 0) scored .63 mIoU in windows of
64 px that overlap by half, .59 in windows of 128 px and .50 in one piece (stage 2; .54, .53 and
.48 in stage 1).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BATCH = 1 << 18  # px of the windows that are predicted at once
# images (B, 3, H, W) float in [0, 1] -> each class's share of every pixel (B, C, H, W), sum 1
Shares = Callable[[Tensor], Tensor]


class Grid(NamedTuple):
    """The windows of a picture: squares of `patch` px, each half over the next one. Half windows
    are its cells: (rows, columns) of them cover the picture and, at its right and lower border, a
    little more."""

    patch: int  # px, even
    rows: int  # of windows
    columns: int

    @property
    def step(self) -> int:
        """From one window to the next, px: the side of a cell."""
        return self.patch // 2

    @property
    def at_once(self) -> int:
        """Windows of a batch."""
        return max(1, BATCH // self.patch**2)

    def batches(self, columns: Sequence[int]) -> Iterator[Sequence[int]]:
        """The windows of a row that are predicted together: `at_once`, then ever smaller powers of
        two. For each number of images torch keeps code of its own: any number would fill memory."""
        start = 0
        while left := len(columns) - start:
            n = min(self.at_once, 1 << left.bit_length() - 1)
            yield columns[start : start + n]
            start += n


def grid_of(patch: int, width: int, height: int) -> Grid:
    """The windows that cover a picture of this size, px, at least one."""
    step = patch // 2
    return Grid(patch, *(max(1, -(-side // step) - 1) for side in (height, width)))


def smooth(n: int) -> np.ndarray:
    """The weight of each px along a window, the square of a sine: (n,) float32, 0 at the borders,
    where a network sees least. Of two windows that overlap by half the weights add up to 1.
    Notebook 08."""
    return (np.sin((np.arange(n) + 0.5) * np.pi / n) ** 2).astype(np.float32)


def weights(index: int, count: int, n: int, profile: Callable = smooth) -> np.ndarray:
    """The weight of each px along window `index` of `count`: (n,) float32. At the border of the
    picture there is no second window, and nothing fades."""
    own = profile(n).copy()
    if index == 0:
        own[: n // 2] = 1
    if index == count - 1:
        own[n // 2 :] = 1
    return own


def strip(
    grid: Grid, row: int, said: dict[int, list[tuple[int, np.ndarray]]], C: int
) -> np.ndarray:
    """The cells between the top of a row of windows and the top of the next, from what the windows
    of this row and of the one above say: (C, step, width) float32; after the last row of windows
    twice as high.

    said: row -> [(column, shares (C, patch, patch))]; a window that is left out says nothing.
    """
    step, last = grid.step, row == grid.rows - 1
    out = np.zeros((C, step * (1 + last), step * (grid.columns + 1)), np.float32)
    for r, windows in said.items():
        down = weights(r, grid.rows, grid.patch)[:, None]
        lines = np.s_[: out.shape[1]] if r == row else np.s_[step:]
        for column, shares in windows:
            own = shares[:, lines] * (down[lines] * weights(column, grid.columns, grid.patch))
            out[:, : own.shape[1], column * step : column * step + grid.patch] += own
    return out


def blended(
    shares: Shares, image: np.ndarray, patch: int, C: int, profile: Callable = smooth
) -> np.ndarray:
    """What windows of `patch` px say together of one image, all of it in memory: (C, H, W) float32.

    image: (H, W, 3) uint8 RGB. profile: n -> (n,) weights along a window; those of two that overlap
    should add up to 1. Raises ValueError for anything but such an image.
    """
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
        raise ValueError(
            f"the image is {image.dtype} of shape {image.shape}; give (H, W, 3) uint8 RGB, say "
            "np.asarray(PIL.Image.open(FILE).convert('RGB'))"
        )
    H, W = image.shape[:2]
    grid = grid_of(patch, W, H)
    full = [(n + 1) * grid.step for n in (grid.rows, grid.columns)]
    image = np.pad(image, [(0, full[0] - H), (0, full[1] - W), (0, 0)], mode="symmetric")
    out = np.zeros((C, *full), np.float32)
    for r in range(grid.rows):
        y, down = r * grid.step, weights(r, grid.rows, patch, profile)[:, None]
        for columns in grid.batches(range(grid.columns)):
            pixels = cut(image[y : y + patch], grid, columns)
            for c, own in zip(columns, predicted(shares, pixels)):
                x, over = c * grid.step, weights(c, grid.columns, patch, profile)
                out[:, y : y + patch, x : x + patch] += own * (down * over)
    return out[:, :H, :W]


def cut(band: np.ndarray, grid: Grid, columns: Sequence[int]) -> np.ndarray:
    """The windows of some columns from a band that is one window high: (n, patch, patch, 3)."""
    return np.stack([band[:, c * grid.step : c * grid.step + grid.patch] for c in columns])


def predicted(shares: Shares, pixels: np.ndarray) -> np.ndarray:
    """Shares (n, C, patch, patch) of windows (n, patch, patch, 3) uint8 RGB; float16, as they are
    kept on disk: a share is known to three digits at best."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255  # (n, 3, patch, patch)
    return shares(images).half().cpu().numpy()
