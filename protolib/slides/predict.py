"""A trained run on pictures of any size: each gets a folder with mask, overlay, outlines, areas,
confidence and a page that shows them.

What is finished is kept window by window, so a run that was killed goes on where it was and ends
with the same bytes; a picture's folder appears whole or not at all.
"""

import base64
import io
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm.auto import tqdm

from protolib import files, windows
from protolib.blocks import Table
from protolib.data import patches
from protolib.data.pictures import indexed
from protolib.data.regions import WHITE
from protolib.experiment import Run
from protolib.keys import code_of, digest
from protolib.results import METHODS
from protolib.slides import outlines, reading
from protolib.slides.reading import Picture
from protolib.study import html

CODE = code_of(Path(__file__).parent)  # what one version has begun no other goes on with
OFFERED = ("pbip_stage1", "pbip_stage2", "nearest_prototype")
APART = 10.0  # times that a picture's resolution may differ from the run's
CELL = 16  # px of the run's resolution to a px of the thumbnail that background is found on
RIM = 5  # px, odd: what is taken together where tissue ends
LARGE = 50  # Mpx from which on a mask is a tiled TIFF, not a PNG
TILE = 256  # px of such a TIFF
SHOWN = 2000, 1000  # px, the longer side of the overlay, and of the pictures on the page
FILES = "mask.png or mask.tif, confidence, overlay.png, outlines.geojson, areas.csv, report.html"


def predict(
    run: Run,
    inputs: Sequence[str | Path],
    out: str | Path,
    method: str = "pbip_stage1",
    mpp: float = 0.0,
    resume: bool = False,
) -> list[Path]:
    """Predict pictures of any size into `out`, a folder for each under its name; returns the
    folders. Notebook 08.

    inputs: images, slides, or folders of them. method: one of OFFERED; stage 2 takes about twenty
    times as long where it averages eight poses. mpp: micrometres to a pixel of all inputs, where
    their files do not say it or say it wrong. resume: go on with what an earlier call left, and
    leave what it finished. Raises ValueError, before any work, for whatever cannot be: inputs, each
    with its reason, names that are taken, a method without a trained network.
    """
    if method not in OFFERED:
        raise ValueError(f"method '{method}'; expected one of {', '.join(OFFERED)}")
    if not run.trained(method):
        raise ValueError(
            f"{run.folder} holds no {METHODS[method]} of these settings, data and code; make it "
            "with: python -m protolib run --resume RUN"
        )
    out = Path(out)
    paths = reading.pictures([Path(given) for given in inputs])
    jobs, wrong = [], []
    for path, name in zip(paths, _names(paths)):
        try:
            job = Job(run, method, reading.open_picture(path), mpp, out / name)
        except ValueError as error:
            wrong.append(str(error))
            continue
        if not job.folder.exists():
            jobs.append(job)
        elif resume and job.key == job.key_of(job.folder / "picture.json"):
            print(f"{name}: done before")
        elif resume:
            wrong.append(f"{job.folder} is of other settings, or another picture: remove it")
        else:
            wrong.append(f"{job.folder} is there already: choose another --out, or --resume")
    if wrong:
        raise ValueError("\n".join(wrong))
    for job in jobs:
        job.write(resume)
    return [out / name for name in _names(paths)]


def _names(paths: Sequence[Path]) -> list[str]:
    """A folder for each picture: its name without suffix, with it where two would be the same."""
    stems = [path.stem.removesuffix(".ome") for path in paths]
    names = [p.name if stems.count(stem) > 1 else stem for p, stem in zip(paths, stems)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several pictures are called {twice[0]}: give them in calls of their own")
    return names


def scale_of(run: Run, picture: Picture, mpp: float = 0.0) -> float:
    """Pixels that the run sees to a pixel of a picture. Notebook 08.

    mpp: micrometres to a pixel of the picture, 0 for what its file says. Where the picture's or the
    run's are not known, a pixel is taken for one of the data set as published. Raises ValueError
    for resolutions that are more than APART times apart.
    """
    told, wanted = mpp or picture.mpp, run.mpp
    if not told or not wanted:
        return 1 / patches.shrinkage(run.spec, run.data_root, run.preset.size)
    if not 1 / APART <= told / wanted <= APART:
        raise ValueError(
            f"{picture.path} has {told:g} um per pixel and the run was trained at {wanted:g}: "
            f"they are more than {APART:g} times apart; give the right one with --mpp"
        )
    return told / wanted


class Job:
    """One picture on its way through a run. Raises ValueError for a resolution that cannot be
    right."""

    def __init__(self, run: Run, method: str, picture: Picture, mpp: float, folder: Path):
        self.run, self.method, self.picture, self.folder = run, method, picture, folder
        self.mpp, self.spec = mpp or picture.mpp, run.spec
        self.scale = scale_of(run, picture, mpp)
        self.size = picture.scaled(self.scale)
        self.grid = windows.grid_of(run.preset.size, *self.size)

    @property
    def resolution(self) -> str:
        """What is known of the resolution, in a sentence."""
        if not self.mpp:
            return (
                "The file does not say how many micrometres a pixel has, so its pixels are taken "
                f"for as large as those of {self.spec.name}: wrong if they are not. Give --mpp."
            )
        if not self.run.mpp:
            return (
                f"{self.mpp:g} um per pixel; {self.spec.name} does not say its own, so the pixels "
                "are taken for as large: wrong if they are not."
            )
        return f"{self.mpp:g} um per pixel, read at the run's {self.run.mpp:g}."

    @cached_property
    def darkness(self) -> np.ndarray:
        """The darkest channel of a thumbnail, (h, w) uint8: below WHITE there is tissue."""
        return self.picture.shrunk(self.scale / CELL).min(2)

    def tissue(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Where tissue is, (height, width) bool, px of the run; False outside the picture.

        The white filter of the kit, on the thumbnail, so that the white between cells is tissue;
        enlarged smoothly, and the same whatever the window.
        """
        (W, H), (h, w) = self.size, self.darkness.shape
        out = np.zeros((height, width), bool)
        n, m = min(width, W - x), min(height, H - y)
        above, below, down = _between(y, m, H, h)
        left, right, over = _between(x, n, W, w)
        # (m, w), then (m, n): bilinear, one side after the other
        lines = self.darkness[above] * (1 - down[:, None]) + self.darkness[below] * down[:, None]
        out[:m, :n] = lines[:, left] * (1 - over) + lines[:, right] * over < WHITE
        return out

    def covered(self, top: int, height: int) -> np.ndarray:
        """Where tissue is in whole lines of the picture, (height, W) bool: as `tissue` says, but
        along its rim, next to a cell of the thumbnail that is glass, the pixels themselves are
        asked, each with those RIM // 2 around it."""
        (W, H), (h, w) = self.size, self.darkness.shape
        tissue, glass = self.tissue(0, top, W, height), self.darkness >= WHITE
        above, below, _ = _between(top, height, H, h)
        left, right, _ = _between(0, W, W, w)
        near = glass[above] | glass[below]  # (height, w)
        rim = tissue & (near[:, left] | near[:, right])
        if rim.any():
            first, last = max(0, top - RIM // 2), min(H, top + height + RIM // 2)
            pixels = self.picture.window(self.scale, 0, first, W, last - first)
            pale = ndimage.uniform_filter(pixels.min(2).astype(np.float32), RIM)
            tissue &= ~rim | (pale[top - first :][:height] < WHITE)
        return tissue

    def write(self, resume: bool) -> None:
        """Make the picture's folder."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        state = part / "work"
        if not (resume and self.key == self.key_of(state / "identity.json")):
            shutil.rmtree(part, ignore_errors=True)
            files.write_json(state / "identity.json", {"key": self.key})
        width, height = self.picture.size
        print(f"{self.picture.path.name}: {width} x {height} px. {self.resolution}", flush=True)
        began = time.perf_counter()
        mask, confidence = self._maps(state)
        self._results(part, mask, confidence)
        shutil.rmtree(state)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, self.folder)
        seconds = time.perf_counter() - began
        speed = self.size[0] * self.size[1] / seconds / 1e6
        print(f"  {self.folder}: {seconds:.1f} s, {speed:.2f} million pixels a second", flush=True)

    @cached_property
    def key(self) -> str:
        """Hash of what the masks are of: the picture, how it is read, and what predicts it."""
        of, run = self.picture.path.stat(), self.run
        step = "bank" if self.method == "nearest_prototype" else "network"
        made = run.key(step, self.method), repr(run.preset)
        read = self.picture.path.name, of.st_size, of.st_mtime_ns, self.mpp, self.scale
        return digest(made, self.method, read, self.grid, self.grid.at_once, CODE)

    def key_of(self, file: Path) -> str:
        """The key that an earlier call left in a file, "" where there is none."""
        return files.read_json(file, {"key": str})["key"] if file.is_file() else ""

    # windows

    def _maps(self, state: Path) -> tuple["OnDisk", "OnDisk"]:
        """Mask and confidence of the whole picture, (H, W) uint8 on disk: a row of windows, then
        the strip that it completes."""
        W, H = self.size
        progress, grid = state / "rows.json", self.grid
        done = files.read_json(progress, {"rows": int})["rows"] if progress.is_file() else 0
        mask, confidence = (
            OnDisk(state / f"{name}.npy", (H, W), new=not done) for name in ("mask", "confidence")
        )
        todo = [self._with_tissue(r) for r in range(grid.rows)]
        bar = tqdm(
            total=sum(map(len, todo)),
            initial=sum(map(len, todo[:done])),
            desc="windows",
            unit="window",
            leave=False,
        )
        with bar:
            for r in range(done, grid.rows):
                self._row(state, r, todo[r], bar)
                self._strip(state, r, todo, mask, confidence)
                files.write_json(progress, {"rows": r + 1})
                for old in state.glob(f"{r - 1}-*.npy"):
                    old.unlink()
        return mask, confidence

    def _with_tissue(self, row: int) -> list[int]:
        """The columns of the windows of a row that hold tissue."""
        grid, y = self.grid, row * self.grid.step
        tissue = self.tissue(0, y, (grid.columns + 1) * grid.step, grid.patch)
        # (columns + 1,)
        cells = np.logical_or.reduce(tissue.reshape(grid.patch, -1, grid.step), axis=(0, 2))
        return np.flatnonzero(cells[:-1] | cells[1:]).tolist()

    def _batches(self, state: Path, row: int, columns: list[int]) -> list[tuple[Path, list[int]]]:
        """The windows of a row as they are predicted and kept: the file of each batch, and its
        columns."""
        batches = enumerate(self.grid.batches(columns))
        return [(state / f"{row}-{i}.npy", list(own)) for i, own in batches]

    def _row(self, state: Path, row: int, columns: list[int], bar: tqdm) -> None:
        """Predict the windows of a row that are not there yet, a file for each batch."""
        y, step = row * self.grid.step, self.grid.step
        for file, own in self._batches(state, row, columns):
            if not file.is_file():
                x = own[0] * step
                band = self._read(x, y, (own[-1] - own[0]) * step + self.grid.patch)
                pixels = windows.cut(band, self.grid, [c - own[0] for c in own])
                shares = windows.predicted(partial(self.run.shares, self.method), pixels)
                with files.whole(file) as handle:
                    np.save(handle, shares, allow_pickle=False)
            bar.update(len(own))

    def _read(self, x: int, y: int, width: int) -> np.ndarray:
        """A band (patch, width, 3) uint8; what lies outside the picture is its mirror image."""
        (W, H), height = self.size, self.grid.patch
        inside = self.picture.window(self.scale, x, y, min(width, W - x), min(height, H - y))
        more = [(0, height - inside.shape[0]), (0, width - inside.shape[1]), (0, 0)]
        return np.pad(inside, more, mode="symmetric")

    def _strip(
        self, state: Path, row: int, todo: list[list[int]], mask: "OnDisk", confidence: "OnDisk"
    ) -> None:
        """Blend what this row of windows and the one above say of the strip that they complete."""
        (W, H), top = self.size, row * self.grid.step
        said = {
            r: [
                (column, shares)
                for file, columns in self._batches(state, r, todo[r])
                for column, shares in zip(columns, np.load(file))
            ]
            for r in range(max(0, row - 1), row + 1)
        }
        shares = windows.strip(self.grid, row, said, self.spec.C)[:, : H - top, :W]
        place = np.s_[top : top + shares.shape[1]]
        tissue = self.covered(top, shares.shape[1])
        mask[place] = np.where(tissue, shares.argmax(0), self.spec.C)
        confidence[place] = np.where(tissue, np.rint(255 * shares.max(0).clip(0, 1)), 0)

    # results

    def _results(self, part: Path, mask: "OnDisk", confidence: "OnDisk") -> None:
        """Write all that a picture's folder holds."""
        spec = self.spec
        colours = np.array(spec.palette, np.uint8)
        save(part, "mask", mask, colours, self._mask_mpp)
        save(part, "confidence", confidence, None, self._mask_mpp)
        traced = outlines.write(part / "outlines.geojson", mask, spec, self._factors)
        areas = self._areas(mask)
        files.write_text(part / "areas.csv", areas.to_csv(index=False))
        view = Image.fromarray(self.picture.shrunk(min(1.0, SHOWN[0] / max(self.picture.size))))
        with files.whole(part / "overlay.png") as file:
            self._overlay(view, mask).save(file, "PNG")
        view.thumbnail((SHOWN[1], SHOWN[1]))
        files.write_text(part / "report.html", self._page(areas, view, mask, confidence))
        record = {
            "key": self.key,
            "picture": self.picture.path.name,
            "size": self.picture.size,
            "mpp": self.mpp or None,
            "mask_size": self.size,
            "mask_mpp": self._mask_mpp or None,
            "trained_mpp": self.run.mpp or None,
            "method": self.method,
            "preset": self.run.preset.name,
            "dataset": spec.name,
            "seed": self.run.seed,
            "outlined": dict(zip(spec.classes, traced.round(1))),
        }
        files.write_json(part / "picture.json", record)

    @property
    def _factors(self) -> tuple[float, float]:
        """Pixels of the picture to a pixel of the mask, in x and in y."""
        x, y = (own / of for own, of in zip(self.picture.size, self.size))
        return x, y

    @property
    def _mask_mpp(self) -> float:
        """Micrometres to a pixel of the mask, 0 where it is not known."""
        return self.mpp * self._factors[0]

    def _areas(self, mask: "OnDisk") -> pd.DataFrame:
        """Pixels of the mask, share of the tissue and mm2 of each class, and of the background."""
        spec = self.spec
        count = np.zeros(spec.C + 1, np.int64)
        for y in range(0, mask.shape[0], outlines.ROWS):
            count += np.bincount(mask[y : y + outlines.ROWS].ravel(), minlength=spec.C + 1)
        tissue = max(count[: spec.C].sum(), 1)
        columns: dict[str, Any] = {
            "class": [*spec.classes, "background"],
            "title": [*spec.titles, "background"],
            "pixels": count,
            "share_of_tissue": [*(count[: spec.C] / tissue).round(6), ""],
        }
        if self.mpp:
            columns["mm2"] = np.round(count * (self._mask_mpp / 1000) ** 2, 6)
        return pd.DataFrame(columns)

    def _overlay(self, view: Image.Image, mask: "OnDisk") -> Image.Image:
        """The picture with its mask over it and a bar for its scale, as large as `view` of it."""
        shown, colours = np.asarray(view), np.array(self.spec.palette, np.uint8)
        codes = mask.at(shown.shape[:2])
        over = (0.55 * shown + 0.45 * colours[codes]).astype(np.uint8)
        shown = np.where((codes < self.spec.C)[..., None], over, shown)
        edge = np.zeros(codes.shape, bool)  # lines tell classes apart where colours do not
        edge[:-1] |= codes[:-1] != codes[1:]
        edge[:, :-1] |= codes[:, :-1] != codes[:, 1:]
        shown[edge] = 0
        image = Image.fromarray(shown)
        if self.mpp:
            draw_bar(image, self.mpp * self.picture.size[0] / image.width)
        return image

    def _page(
        self, areas: pd.DataFrame, view: Image.Image, mask: "OnDisk", confidence: "OnDisk"
    ) -> str:
        """report.html: what was read and how, the picture and its mask, the areas, the
        confidence."""
        run, spec = self.run, self.spec
        said = (
            f"{METHODS[self.method]} of a run on {spec.name}, preset {run.preset.name}, seed "
            f"{run.seed}. {self.resolution} No pathologist has looked at this."
        )
        legend = " ".join(
            f'<span style="background:rgb{colour};border:1px solid;padding:0 .6em"></span>'
            f'<span style="margin:0 1.2em 0 .4em">{escape(title)}</span>'
            for title, colour in zip(spec.titles, spec.palette)
        )
        share = areas["share_of_tissue"].map(lambda s: s if s == "" else f"{100 * s:.1f}")
        columns = {"class": areas["title"], "share of tissue (%)": share}
        if self.mpp:
            columns["area (mm2)"] = areas["mm2"].map("{:.3f}".format)
        rows = [list(row) for row in zip(*columns.values())]
        caption = ("Areas, counted in pixels of the mask; no shape was smoothed.",)
        sure = Image.fromarray(confidence.at((view.height, view.width)))
        body = [
            f'<p class="from">{escape(said)}</p>',
            figure(self._overlay(view, mask), "The mask over the picture; glass is left out."),
            f"<p>{legend}</p>",
            html.written([Table(list(columns), rows, caption)]),
            figure(view, "The picture."),
            figure(sure, "The share of the winning class: black 0, white 1."),
        ]
        return html.PAGE.substitute(title=escape(self.picture.path.name), body="\n".join(body))


def draw_bar(image: Image.Image, mpp: float) -> None:
    """Draw a bar of a round length and its label into the lower left corner of a picture, in place.

    mpp: micrometres to a pixel of it. One too small for a label stays as it is.
    """
    lengths = [n * 10**k for k in range(-1, 6) for n in (1, 2, 5)]  # um
    fitting = [um for um in lengths if um <= image.width * mpp / 4]
    if image.width < 120 or not fitting:
        return
    um, side = fitting[-1], max(12, image.width // 60)
    label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} um"
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(side)
    length, margin = round(um / mpp), side // 2
    wide = max(length, round(draw.textlength(label, font)))
    top = image.height - 3 * side
    draw.rectangle([margin, top, 3 * margin + wide, image.height - margin], "white")
    draw.rectangle([2 * margin, top + 2 * side - margin, 2 * margin + length, top + 2 * side], 0)
    draw.text((2 * margin, top), label, 0, font)


def figure(image: Image.Image, caption: str) -> str:
    """A picture within a page."""
    with io.BytesIO() as file:
        image.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _between(start: int, n: int, side: int, cells: int) -> tuple[np.ndarray, ...]:
    """Of each of n px from `start` along a side: the cells of the thumbnail before and after it,
    and how far it is from the first, 0 to 1."""
    at = np.clip((np.arange(start, start + n) + 0.5) * cells / side - 0.5, 0, cells - 1)
    first = at.astype(int)
    return first, np.minimum(first + 1, cells - 1), (at - first).astype(np.float32)


class OnDisk:
    """A map (H, W) uint8 in a file, of which only what is asked for is in memory: a memory map that
    stays open counts as memory, page by page."""

    def __init__(self, path: Path, shape: tuple[int, int], new: bool):
        self.path, self.shape = path, shape
        if new:
            np.lib.format.open_memmap(path, "w+", np.uint8, shape)

    def __getitem__(self, place: Any) -> np.ndarray:
        return np.array(np.load(self.path, mmap_mode="r")[place])

    def __setitem__(self, place: Any, values: np.ndarray) -> None:
        opened = np.load(self.path, mmap_mode="r+")
        opened[place] = values
        opened.flush()

    def at(self, shape: tuple[int, int]) -> np.ndarray:
        """The map at another size, (h, w) uint8: of each pixel the value at its middle."""
        y, x = (((np.arange(n) + 0.5) * own / n).astype(int) for n, own in zip(shape, self.shape))
        return self[np.ix_(y, x)]


def save(folder: Path, name: str, values: OnDisk, colours: np.ndarray | None, mpp: float) -> Path:
    """Write a map as a PNG, or as a tiled TIFF where it has
    more than LARGE million pixels; returns its path.

    colours: (n, 3) uint8, a palette for the values; grey without one. mpp: micrometres to a pixel,
    0 where it is not known; written into the TIFF.
    """
    if values.shape[0] * values.shape[1] <= LARGE * 10**6:
        image = Image.fromarray(values[:]) if colours is None else indexed(values[:], colours)
        with files.whole(folder / f"{name}.png") as file:
            image.save(file, "PNG")
        return folder / f"{name}.png"
    table = None
    if colours is not None:
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(colours)] = colours.T.astype(np.uint16) * 257
    per_cm = (10000 / mpp, 10000 / mpp) if mpp else None
    with files.whole(folder / f"{name}.tif") as file:
        tifffile.imwrite(
            file,
            _tiles(values),
            shape=values.shape,
            dtype=np.uint8,
            tile=(TILE, TILE),
            photometric="minisblack" if table is None else "palette",
            colormap=table,
            compression="deflate",
            resolution=per_cm,
            resolutionunit="CENTIMETER" if per_cm else None,
            metadata=None,
        )
    return folder / f"{name}.tif"


def _tiles(values: OnDisk) -> Iterator[np.ndarray]:
    """The tiles of a map, row by row, those at the border filled up."""
    for y in range(0, values.shape[0], TILE):
        strip = values[y : y + TILE]
        for x in range(0, values.shape[1], TILE):
            tile = strip[:, x : x + TILE]
            more = [(0, TILE - side) for side in tile.shape]
            yield np.pad(tile, more)
