"""Memory that does not grow with the split: 20,000 patches take what 500 do."""

import tracemalloc

import numpy as np
import pytest

from protolib.data import patches, regions, specs
from protolib.metrics import Counts, Scorer

FEW, MANY = 500, 20_000
SIZE = 32
BCSS = specs.SPECS["bcss-wsss"]


def drawn(folder, n):
    """n patches of noise with block masks, written into a cache folder as decoding would."""
    rng = np.random.default_rng(0)
    tissue = rng.integers(150, 256, (100, SIZE, SIZE, 3), np.uint8)
    blocks = np.kron(rng.integers(0, 5, (100, 4, 4)), np.ones((1, 8, 8), int)).astype(np.uint8)

    def make(made):
        np.save(made / "images.npy", np.tile(tissue, (n // 100, 1, 1, 1)))
        np.save(made / "masks.npy", np.tile(blocks, (n // 100, 1, 1)))
        np.save(made / "labels.npy", np.eye(4, dtype=np.uint8)[np.arange(n) % 4])
        slides = [f"slide {i % 7}" for i in range(n)]
        return {"ids": [str(i) for i in range(n)], "slides": slides, "patients": slides}

    made = patches._cached(folder, BCSS, "train", {"n": n}, make)
    return patches.PatchDataset(BCSS, "train", made)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth")
    return {n: drawn(folder, n) for n in (FEW, MANY)}


def peak(work, *given) -> tuple[float, object]:
    """Largest memory that the work held at once, bytes, and what it gave."""
    tracemalloc.start()
    found = work(*given)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most, found


def predicted(masks):
    """Masks that are right but for class 0, which is taken for class 1."""
    return np.where(masks == 0, np.uint8(1), masks)


def scored(split, prediction):
    """The scores of all masks of a split in one call."""
    scorer = Scorer(BCSS.C)
    scorer.update(split.masks, prediction)
    return scorer.result()


def by_slide(split):
    """The counts of each slide in batches, as a run adds them up."""
    counts = {}
    for start in range(0, len(split), 256):
        rows = slice(start, start + 256)
        truth, slides = split.masks[rows], np.array(split.slides[rows])
        for slide in np.unique(slides):
            own = truth[slides == slide]
            made = Counts.of(own, predicted(own), BCSS.C)
            counts[slide] = counts.get(slide, Counts.none(BCSS.C)) + made
    return counts


def test_white_share_of_many_patches(splits):
    def work(split):
        return regions.white_share(split.images, split.single_class())

    few, first = peak(work, splits[FEW])
    many, found = peak(work, splits[MANY])
    assert many - few < 5e6  # the labels of 20,000 and one share each
    np.testing.assert_array_equal(found.reshape(-1, FEW), np.tile(first, (MANY // FEW, 1)))


def test_scoring_many_patches(splits):
    few, first = peak(scored, splits[FEW], predicted(splits[FEW].masks))
    many, found = peak(scored, splits[MANY], predicted(splits[MANY].masks))
    # one part of CHUNK pixels more or less full: the 500 masks are just short of one
    assert many - few < 5e6
    assert (found["iou"], found["biou"]) == (first["iou"], first["biou"])


def test_scoring_many_patches_by_slide(splits):
    few, _ = peak(by_slide, splits[FEW])
    many, counts = peak(by_slide, splits[MANY])
    assert many - few < 5e6 and len(counts) == 7
    total = sum(counts.values(), Counts.none(BCSS.C)).scores()
    wanted = scored(splits[FEW], predicted(splits[FEW].masks))
    assert total["iou"] == pytest.approx(wanted["iou"], rel=1e-15)
