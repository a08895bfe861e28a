"""Pictures of any size: every kind is read as it was written or refused in a sentence; windows put
together are the picture; outlines, areas and masks agree when others read them; a run that was
killed ends with the same bytes."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from protolib import presets, windows
from protolib.data import specs
from protolib.data.phantom import Drawing, draw
from protolib.experiment import Run
from protolib.slides import drawn, outlines, reading
from protolib.slides import predict as slides
from protolib.slides.predict import predict

PATCH = 64


class Painted:
    """A run whose network is a formula: a share of colour, and something of the whole window, so
    that windows disagree where they overlap."""

    spec, preset, seed, device = specs.SPECS["phantom"], presets.preset("smoke"), 0, "cpu"
    mpp, data_root, folder, predict = 0.5, "", Path("painted"), Run.predict

    def __init__(self, stop: int = -1):
        self.stop = stop  # the call at which the power fails

    def trained(self, method):
        return True

    def key(self, *_):
        return "key"

    def shares(self, method, images):
        self.stop -= 1
        if self.stop == -1:
            raise KeyboardInterrupt
        red, green, blue = images.unbind(1)
        whole = 0.3 * images.mean((1, 2, 3))[:, None, None]
        return (9 * torch.stack([red + whole, green + 0.1, blue, 1 - red - whole], 1)).softmax(1)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs of colour, and glass on the right."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    blobs = ndimage.gaussian_filter(noise, (12, 12, 0))
    pixels = np.clip(110 + 45 * blobs / blobs.std(), 0, 210).astype(np.uint8)
    pixels[:, -width // 5 :] = 244
    return pixels


PIXELS = picture(300, 420)


def pyramid(path: Path, pixels: np.ndarray, per_cm: float = 20000, **how) -> None:
    """A tiled TIFF with a half and a quarter of the picture behind it."""
    with tifffile.TiffWriter(path) as file:
        for k in (1, 2, 4):
            level = Image.fromarray(pixels).reduce(k) if k > 1 else pixels
            file.write(
                np.asarray(level),
                tile=(128, 128),
                photometric="rgb",
                subfiletype=int(k > 1),
                resolution=(per_cm / k, per_cm / k),
                resolutionunit="CENTIMETER",
                **how,
            )


# reading

KINDS = {
    "flat": {},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "tiles": {"tile": (64, 128), "compression": "deflate", "predictor": True},
    "ome": {"tile": (64, 64), "metadata": {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}},
    "inches": {"resolution": (101600, 101600), "resolutionunit": "INCH"},
    "printed": {"resolution": (72, 72), "resolutionunit": "INCH"},
}
MPP = {"ome": 0.25, "inches": 0.25}


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_of_a_tiff_is_that_of_its_pixels(tmp_path, kind):
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, PIXELS, photometric="rgb", **KINDS[kind])
    opened = reading.open_picture(path)
    assert opened.size == (420, 300) and opened.mpp == MPP.get(kind, 0)
    assert (opened.window(1.0, 101, 63, 250, 200) == PIXELS[63:263, 101:351]).all()


def test_bands_apart_16_bits_and_transparency(tmp_path):
    apart, deep, clear = (tmp_path / name for name in ("apart.tif", "deep.tif", "clear.png"))
    tifffile.imwrite(
        apart, PIXELS.transpose(2, 0, 1), photometric="rgb", planarconfig=2, compression="lzw"
    )
    tifffile.imwrite(deep, PIXELS.astype(np.uint16) * 257, photometric="rgb", tile=(64, 64))
    for path in (apart, deep):
        assert (reading.open_picture(path).shrunk(1.0) == PIXELS).all()
    alpha = np.full((300, 420, 1), 255, np.uint8)
    alpha[:150] = 0
    Image.fromarray(np.concatenate([PIXELS, alpha], 2)).save(clear)
    read = reading.open_picture(clear).shrunk(1.0)
    assert (read[:150] == 255).all() and (read[150:] == PIXELS[150:]).all()


def test_openslide_and_tifffile_read_the_same_pyramid(tmp_path):
    path = tmp_path / "slide.tif"
    pyramid(path, PIXELS, compression="jpeg")
    by_tifffile, by_openslide = reading.open_picture(path), reading.scanner(path)
    assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
    assert by_tifffile.levels == by_openslide.levels == [(420, 300), (210, 150), (105, 75)]
    assert by_tifffile.mpp == pytest.approx(0.5) == by_openslide.mpp
    for level, x, y in ((0, 33, 50), (1, 20, 10), (2, 5, 7)):
        a, b = (of.read(level, x, y, 60, 50).astype(int) for of in (by_tifffile, by_openslide))
        assert abs(a - b).max() <= 2  # two decoders of JPEG


@pytest.mark.parametrize("scale", (0.5, 0.37, 0.2, 1.7))
def test_a_pixel_does_not_depend_on_its_window(tmp_path, scale):
    path = tmp_path / "slide.tif"
    pyramid(path, PIXELS, compression="deflate")
    opened = reading.open_picture(path)
    (W, H), whole = opened.scaled(scale), opened.shrunk(scale).astype(int)
    assert whole.shape == (H, W, 3)
    x, y, w, h = W // 3, H // 4, W // 3, H // 2
    assert abs(opened.window(scale, x, y, w, h) - whole[y : y + h, x : x + w]).max() <= 1


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bad(folder: Path, name: str) -> Path:
    path, image = folder / name, Image.fromarray(PIXELS)
    if name == "words.png":
        path.write_text("no picture")
    elif name == "empty.png":
        path.touch()
    elif name.startswith("cut"):
        image.save(path)
        _cut(path)
    elif name.startswith("tiles"):
        pyramid(path, PIXELS)
        _cut(path)
    elif name.startswith("cmyk"):
        image.convert("CMYK").save(path)
    elif name == "grey.png":
        image.convert("L").save(path)
    elif name == "grey.tif":
        tifffile.imwrite(path, PIXELS[..., 0])
    elif name == "stack.tif":
        tifffile.imwrite(path, np.stack([PIXELS] * 3), photometric="rgb")
    elif name == "float.tif":
        tifffile.imwrite(path, PIXELS.astype(np.float32), photometric="rgb")
    elif name == "zero.tif":
        tifffile.imwrite(path, PIXELS, photometric="rgb")
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags["ImageWidth"].overwrite(0)
    elif name == "lab.tif":
        image.convert("LAB").save(path)
    elif name == "twelve.tif":
        tifffile.imwrite(path, PIXELS.astype(np.uint16) * 16, photometric="rgb")
    return path


@pytest.mark.parametrize(
    "name, words",
    [
        ("words.png", "cannot be read as a picture"),
        ("empty.png", "is empty, 0 bytes"),
        ("cut.png", "cannot be read as a picture"),
        ("cut.jpg", "cannot be read as a picture"),
        ("tiles.tif", "is cut off"),
        ("grey.png", "is of one band, mode L"),
        ("grey.tif", "is of 1 band"),
        ("cmyk.jpg", "is in CMYK"),
        ("cmyk.tif", "is in CMYK"),
        ("stack.tif", "is a stack, 3 x 300 x 420 x 3"),
        ("float.tif", "is of float32 numbers"),
        ("zero.tif", "of no size"),
        ("lab.tif", "is of 3 band(s), cielab"),
        ("twelve.tif", "has 16 bits and is black in all but the lowest"),
        ("nowhere.png", "is no file"),
    ],
)
def test_what_is_no_picture_is_refused_before_anything_is_written(tmp_path, name, words):
    """One bad file among good ones of a folder, or beside it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for good in ("a.png", "z.png"):
        Image.fromarray(PIXELS).save(folder / good)
    bad = _bad(folder, name)
    with pytest.raises(ValueError) as told:
        predict(Painted(), [folder, *[bad] * (not bad.exists())], tmp_path / "out")
    assert words in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "image",
    [PIXELS[..., 0], PIXELS / 255, np.dstack([PIXELS, PIXELS[..., 0]]), PIXELS[:0]],
    ids=["one band", "float", "four bands", "no rows"],
)
def test_a_notebook_is_told_what_an_image_must_be(image):
    with pytest.raises(ValueError, match=r"give \(H, W, 3\) uint8 RGB"):
        Painted().predict(image)


def test_other_refusals(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    for given, words in (
        (dict(mpp=25.0), "has 25 um per pixel and the run was trained at 0.5"),
        (dict(mpp=0.01), "more than 10 times apart"),
        (dict(method="cam"), "expected one of pbip_stage1"),
    ):
        with pytest.raises(ValueError, match=words):
            predict(Painted(), [path], tmp_path / "out", **given)
    with pytest.raises(ValueError, match="holds no picture"):
        (tmp_path / "empty").mkdir()
        predict(Painted(), [tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="is there already"):
        predict(Painted(), [path], tmp_path / "out")


# windows


def test_weights_of_windows_that_overlap_add_up_to_one():
    for n in (4, 64, 112):
        own = [windows.weights(i, 5, n) for i in range(5)]
        total = np.zeros(6 * n // 2)
        for i, part in enumerate(own):
            total[i * n // 2 : i * n // 2 + n] += part
        assert abs(total - 1).max() < 1e-6 and own[2][0] < 0.6 / n < own[0][0]


@pytest.mark.parametrize("side", (1, 63, 64, 65, 96, 97, 500))
def test_windows_cover_a_side_and_no_window_is_empty(side):
    grid = windows.grid_of(64, side, side)
    assert (grid.columns + 1) * 32 >= side and (grid.columns - 1) * 32 < side


def test_batches_hold_each_window_once_and_have_few_sizes():
    grid = windows.grid_of(PATCH, 64 * 32, 64)
    sizes = set()
    for n in range(200):
        batches = list(grid.batches(range(n)))
        assert [column for own in batches for column in own] == list(range(n))
        sizes |= set(map(len, batches))
    assert grid.at_once == 64 and sizes == {1, 2, 4, 8, 16, 32, 64}


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_windows_from_disk_are_the_picture_in_one_pass(tmp_path, monkeypatch):
    pixels = picture(1000, 1400)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [folder] = predict(Painted(), [tmp_path / "a.png"], tmp_path / "out")
    mask = np.asarray(Image.open(folder / "mask.png"))
    shares = Painted().predict(pixels)
    tissue = mask < 4
    assert mask.shape == (1000, 1400)
    assert np.abs(tissue.sum(1) - 1120).max() <= 2  # glass begins there; half of what is averaged
    assert (shares.argmax(0) == mask)[tissue].all()
    sure = np.asarray(Image.open(folder / "confidence.png"))
    assert (np.rint(255 * shares.max(0)) == sure)[tissue].all()
    # the same picture in other batches, and as a pyramid that is read piece by piece
    monkeypatch.setattr(windows, "BATCH", 5 * PATCH**2)
    pyramid(tmp_path / "b.tif", pixels, compression="deflate")
    [other] = predict(Painted(), [tmp_path / "b.tif"], tmp_path / "out")
    same = np.asarray(Image.open(other / "mask.png")) == mask
    assert same[:, :1104].all()  # next to glass, its thumbnail comes from another level


def test_a_part_of_a_picture_is_called_what_it_is_called_in_the_whole():
    pixels, run = picture(400, 500), Painted()
    whole, part = run.predict(pixels), run.predict(pixels[96:, 64:384])  # cut at windows' borders
    assert np.allclose(part[:, 64:-64, 64:-64], whole[:, 160:-64, 128:320], atol=1e-6)
    shifted = run.predict(pixels[10:, 22:])  # windows that begin elsewhere
    differ = shifted.argmax(0)[64:-64, 64:-64] != whole.argmax(0)[74:-64, 86:-64]
    assert differ.mean() < 0.01


# what comes out


def test_outlines_are_the_regions_whatever_the_strips(monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = (rng.random(rng.integers(1, 40, 2)) < rng.random()).astype(np.uint8)
        monkeypatch.setattr(outlines, "ROWS", int(rng.integers(1, 20)))
        shapes = outlines.polygons(mask, 1)
        assert len(shapes) == ndimage.label(mask)[1] and shapely.is_valid(shapes).all()
        y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        assert (shapely.contains_xy(shapely.union_all(shapes), x, y) == mask).all()


def test_a_simplified_outline_stays_within_half_a_pixel():
    mask = (
        ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((300, 300)), 9) > 0
    ) * 1
    shapes = outlines.polygons(mask, 1)
    few = outlines.simplified(shapes, (1.0, 1.0))
    assert shapely.is_valid(few).all()
    assert shapely.hausdorff_distance(shapes, few).max() < 0.51  # and a hundredth
    assert shapely.get_num_coordinates(few).sum() < 0.4 * shapely.get_num_coordinates(shapes).sum()
    assert shapely.area(few).sum() == pytest.approx(mask.sum(), rel=0.01)


def test_masks_outlines_and_areas_agree_when_others_read_them(tmp_path, monkeypatch):
    pyramid(tmp_path / "a.tif", picture(600, 800), per_cm=40000, compression="deflate")  # .25 um
    [as_png] = predict(Painted(), [tmp_path / "a.tif"], tmp_path / "png")
    monkeypatch.setattr(slides, "LARGE", 0)
    [folder] = predict(Painted(), [tmp_path / "a.tif"], tmp_path / "tif")
    spec = Painted.spec
    with tifffile.TiffFile(folder / "mask.tif") as file:
        page = file.pages[0]
        mask = page.asarray()
        assert page.is_tiled and page.tags["XResolution"].value[0] == 20000  # .5 um
        colours = page.colormap[:, : spec.C + 1].T // 257
    assert colours.tolist() == [list(colour) for colour in spec.palette]
    image = Image.open(as_png / "mask.png")
    assert (np.asarray(image) == mask).all() and mask.shape == (300, 400)
    assert image.getpalette()[:15] == [v for colour in spec.palette for v in colour]
    sure = np.asarray(Image.open(as_png / "confidence.png"))
    assert (tifffile.imread(folder / "confidence.tif") == sure).all()
    assert (sure[mask == 4] == 0).all() and sure[mask < 4].min() >= 63  # of four shares, the best

    read = json.loads((folder / "outlines.geojson").read_text())
    table = pd.read_csv(folder / "areas.csv").set_index("class")
    assert read["type"] == "FeatureCollection"
    traced = dict.fromkeys(spec.titles, 0.0)
    for feature in read["features"]:
        told, shape = feature["properties"], shapely.from_geojson(json.dumps(feature["geometry"]))
        name = told["classification"]["name"]
        assert told["objectType"] == "annotation" and shape.is_valid
        assert told["classification"]["color"] == list(spec.palette[spec.titles.index(name)])
        traced[name] += shape.area
    for c, name in enumerate(spec.classes):
        pixels = (mask == c).sum()
        assert pixels == table.pixels[name]
        assert traced[spec.titles[c]] == pytest.approx(4 * pixels, rel=0.01)  # px of the slide
        assert table.mm2[name] == pytest.approx(pixels * 0.25e-6, abs=1e-6)
        assert table.share_of_tissue[name] == pytest.approx(pixels / (mask < 4).sum(), abs=1e-6)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "0.25 um per pixel" in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert Image.open(folder / "overlay.png").size == (800, 600)


def test_what_is_not_known_of_the_resolution_is_said_and_no_area_is_guessed(tmp_path, capsys):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    [folder] = predict(Painted(), [tmp_path / "a.png"], tmp_path / "out")
    assert "does not say how many micrometres" in capsys.readouterr().out
    assert "does not say how many micrometres" in (folder / "report.html").read_text()
    assert "mm2" not in pd.read_csv(folder / "areas.csv")
    assert json.loads((folder / "picture.json").read_text())["mpp"] is None


# stopped, and gone on


def test_stopped_three_times_it_ends_with_the_same_bytes_and_predicts_no_window_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(windows, "BATCH", 6 * PATCH**2)
    Image.fromarray(picture(400, 500)).save(tmp_path / "a.png")
    straight = Painted(stop=10**6)
    [folder] = predict(straight, [tmp_path / "a.png"], tmp_path / "straight")
    calls = 10**6 - straight.stop
    made = 0
    for stop in (3, 7, 5):
        with pytest.raises(KeyboardInterrupt):
            predict(Painted(stop), [tmp_path / "a.png"], tmp_path / "out", resume=True)
        assert not (tmp_path / "out" / "a").exists()
        made += stop
    last = Painted(stop=10**6)
    [other] = predict(last, [tmp_path / "a.png"], tmp_path / "out", resume=True)
    assert results(other) == results(folder) and made + 10**6 - last.stop == calls
    again = Painted(stop=0)  # nothing is left to predict
    assert predict(again, [tmp_path / "a.png"], tmp_path / "out", resume=True) == [other]
    assert not list((tmp_path / "out").glob(".*"))


def test_another_resolution_begins_anew(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(KeyboardInterrupt):
        predict(Painted(0), [tmp_path / "a.png"], tmp_path / "out", mpp=0.25)
    [folder] = predict(Painted(), [tmp_path / "a.png"], tmp_path / "out", mpp=0.5, resume=True)
    assert Image.open(folder / "mask.png").size == (420, 300)
    with pytest.raises(ValueError, match="is of other settings, or another picture"):
        predict(Painted(), [tmp_path / "a.png"], tmp_path / "out", mpp=0.4, resume=True)


# with networks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with its networks trained, as `protolib run` leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    made = Run("smoke", run_dir=folder, device="cpu")
    made.net("pbip_stage2")
    told = dict(preset="smoke", dataset="phantom", data_root="", seed=0, device="cpu")
    rest = {"notebooks": {}, "classes": [], "titles": [], "peak_rss_mb": None}
    (folder / "run.json").write_text(json.dumps({"parameters": told, **rest}))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("method", slides.OFFERED)
def test_a_patch_gets_the_mask_that_the_run_gives_it(run, method):
    val = run.data("val")
    assert run.trained(method) and run.mpp == 0.5
    wanted = run.masks(method, "val", range(8))
    shares = np.stack([run.predict(image, method) for image in val.images[:8]])  # (8, C, H, W)
    ordered = np.sort(shares, axis=1)
    sure = ordered[:, -1] > ordered[:, -2]  # kept to three digits, two shares may be the same
    assert (shares.argmax(1) == wanted)[sure].all() and sure.mean() > 0.9


@pytest.mark.slow
def test_a_run_without_its_network_is_refused(run, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    other = Run("smoke", run_dir=tmp_path / "other", device="cpu", cache=run.cache)
    with pytest.raises(ValueError, match="holds no PBIP stage 1 of these settings"):
        predict(other, [tmp_path / "a.png"], tmp_path / "out")


@pytest.mark.slow
def test_killed_three_times_the_command_ends_with_the_same_bytes(run, tmp_path):
    patches = draw("test", 200, Drawing(16, 3)).images  # a picture of phantom patches
    pixels = np.concatenate([np.concatenate(list(patches[i : i + 4]), 1) for i in (0, 4, 8, 12)])
    pyramid(tmp_path / "a.tif", pixels, compression="deflate")

    def command(out: str, calls: int) -> subprocess.CompletedProcess:
        code = f"""if True:
            import os, signal
            from protolib.__main__ import main
            from protolib import windows
            calls, predicted = iter(range({calls}, -1, -1)), windows.predicted
            def dying(*given):
                return predicted(*given) if next(calls) else os.kill(os.getpid(), signal.SIGKILL)
            windows.predicted = dying
            words = [{str(run.folder)!r}, {str(tmp_path / "a.tif")!r}]
            main(["predict", *words, "--out", {str(tmp_path / out)!r}, "--resume"])
            """
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "million pixels a second" in command("straight", 10**6).stdout
    for calls in (3, 1, 9):
        assert command("out", calls).returncode == -signal.SIGKILL
        assert not (tmp_path / "out" / "a").exists()
    command("out", 10**6)
    assert results(tmp_path / "out" / "a") == results(tmp_path / "straight" / "a")


def test_a_drawn_slide_has_its_mask_and_its_stain_can_be_changed(monkeypatch):
    monkeypatch.setattr(drawn, "DRAWN", 1)
    image, mask = drawn.slide(300, seed=1, fat=True)
    assert (drawn.slide(300, seed=1, fat=True)[0] == image).all()
    assert image.shape == (300, 300, 3) and set(np.unique(mask)) <= set(range(5))
    assert (image[mask == 4].mean() > 200) and (image[mask < 4].mean() < 200)
    assert (drawn.restained(image) == image).all()
    pale = drawn.restained(image, eosin=0.5)
    assert pale[mask < 4].mean() > image[mask < 4].mean() + 5
