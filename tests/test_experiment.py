"""A run loads what its folder holds for the same key and makes the rest; its steps agree with the
kernels they string together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from protolib import cams, experiment, metrics, presets, results
from protolib.data import phantom
from protolib.experiment import Run

pytestmark = pytest.mark.slow
TINY = replace(
    presets.preset("smoke"),
    name="tiny",
    size=64,
    patches=(64, 8, 8),
    N=3,
    tta="none",
    pseudo_tta="none",
    stage2_tta=False,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)


def open_run(folder, **more):
    return Run("tiny", run_dir=folder, device="cpu", **more)


def test_record_is_complete_and_a_second_run_only_loads(folder, monkeypatch):
    first = open_run(folder).record()
    assert list(first["methods"]) == list(results.METHODS) == list(first["seconds"])
    monkeypatch.setattr(
        experiment.bank, "build", lambda *_, **__: pytest.fail("the bank was built again")
    )
    monkeypatch.setattr(
        experiment,
        "cam_loss",
        lambda *_: pytest.fail("a finished network was trained again"),
    )
    monkeypatch.setattr(
        experiment.segmentation,
        "segmentation_loss",
        lambda *_: pytest.fail("stage 2 was trained again"),
    )
    assert open_run(folder).record()["methods"] == first["methods"]


def test_same_seed_same_numbers_in_another_folder(folder, tmp_path):
    there, here = open_run(tmp_path), open_run(folder)
    assert there.scores("prototypes") == here.scores("prototypes")
    np.testing.assert_array_equal(there.bank.prototypes, here.bank.prototypes)


def test_another_seed_or_setting_has_another_key(folder):
    key = open_run(folder).key
    assert open_run(folder).key == key
    assert len({key, open_run(folder, seed=1).key, open_run(folder, K=2).key}) == 3


def test_oracle_masks_hold_no_class_that_the_truth_lacks(folder):
    run = open_run(folder)
    test = run.data("test")
    for mask, label in zip(run.masks("pbip_stage1", "test", "oracle"), test.labels):
        assert label[np.unique(mask)].all()


def test_scores_are_those_of_the_masks(folder):
    run = open_run(folder)
    matrix = metrics.confusion(np.array(run.data("val").masks), run.masks("cam", "val"), 4)
    assert run.scores("cam", "val")["miou"] == pytest.approx(metrics.scores(matrix)["miou"])


def test_pseudo_masks_carry_the_run_and_hold_only_labelled_classes(folder):
    run = open_run(folder)
    patches = run.pseudo_masks()
    manifest = experiment.read_json(folder / "pseudo_masks" / "manifest.json")
    assert (manifest["dataset"], manifest["split"], manifest["key"]) == (
        "phantom",
        "train",
        run.key,
    )
    for i, label in enumerate(run.data("train").labels):
        assert label[patches[i]["mask"].unique().numpy()].all()


def test_retrain_forgets_the_steps_but_not_the_patches(tmp_path):
    run = open_run(tmp_path)
    _ = run.bank
    assert run.made("bank")
    assert not open_run(tmp_path, retrain=True).made("bank")
    assert (tmp_path / "cache").exists()


def test_full_supervision_takes_val_where_training_masks_are_missing(folder, monkeypatch):
    run = open_run(folder)
    assert run.masked_split().dataset.split == "train"
    monkeypatch.setattr(run.data("train"), "masks", None)
    assert run.masked_split().dataset.split == "val"


def test_predicted_labels_of_stage_one_are_positive_logits(folder):
    run = open_run(folder)
    index, maps, labels = next(run.predictions("cam", "test"))
    images = torch.stack([run.data("test")[int(i)]["image"] for i in index]).float() / 255
    found, logits = cams.predict(run.net("cam"), images, TINY, "none")
    torch.testing.assert_close(maps, found)
    assert torch.equal(labels, logits > 0)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as BCSS-WSSS is published, small: drawn patches, the label in each training name."""
    root = tmp_path_factory.mktemp("bcss")
    phantom.write_folder(root, {"train": 48, "val": 6, "test": 6}, size=64, seed=0)
    return root


@pytest.mark.parametrize("name, cluster", [("paper_text", "lite0"), ("released_code", "")])
def test_the_paper_and_the_released_code_run_start_to_end_at_a_tiny_width(
    name, cluster, published, tmp_path, monkeypatch
):
    tiny = dict(
        size=64,
        N=2,
        backbone="mit_test",
        encoder="swin_test",
        cluster_encoder=cluster,
        epochs=1,
        stage2_size=64,
        stage2_backbone="mit_test",
        stage2_stride=16,
        stage2_epochs=1,
        chunk=7,
    )
    monkeypatch.setitem(
        presets.PRESETS, "tiny", replace(presets.PRESETS[name], name="tiny", **tiny)
    )
    run = Run("tiny", "bcss-wsss", published, tmp_path, device="cpu")
    made = run.record()
    p, history, released = run.preset, run.history("pbip_stage1"), name == "released_code"
    assert run.protocol == (metrics.Protocol("oracle", "counted") if released else metrics.DEFAULT)
    for block in made["methods"].values():
        assert block["protocol"] == str(metrics.Protocol("predicted", p.ignore))
        assert block["oracle"]["protocol"] == str(metrics.Protocol("oracle", p.ignore))
    expected = p.alpha * history["classification"] + p.beta * history["matching"]
    np.testing.assert_allclose(
        history["loss"], expected, rtol=1e-5
    )  # one epoch's float32 means of the same batches
    assert (history["matching"] > 0).all() and run.bank.kind == p.prototypes
    masks, truth = run.masks("pbip_stage1", "test", "oracle"), run.data("test").labels
    allowed = truth[
        np.arange(len(masks))[:, None, None], masks
    ]  # a mask shows only what its label allows ...
    assert (
        allowed.all() or released
    )  # ... but where the released code scores all of them 0, and the first class wins


def test_learned_prototypes_need_no_matching_and_move_apart(published, tmp_path, monkeypatch):
    learned = replace(
        presets.PRESETS["smoke"],
        name="tiny",
        prototypes="learnable",
        beta=0.0,
        diversity=0.5,
        backbone="mit_test",
        levels=(1, 2, 3),
        cam_levels=(3,),
        diversity_after=1,
        epochs=2,
    )
    monkeypatch.setitem(presets.PRESETS, "tiny", learned)
    run = Run("tiny", "bcss-wsss", published, tmp_path, device="cpu")
    history = run.history("pbip_stage1")
    steps = len(run.data("train")) // learned.batch
    with_diversity = history["loss"][1] - history["classification"][1]
    assert with_diversity == pytest.approx(0.5 * history["diversity"][1], rel=1e-4)
    first = history["loss"][0] - history["classification"][0]  # the first step is without
    assert 0 < first < 0.5 * history["diversity"][0] * (steps - 0.5) / steps
    assert run.net("pbip_stage1").prototypes.shape == (4 * learned.K, 512)
    assert not (tmp_path / "bank").exists()


def test_settings_change_any_field_and_the_cache_may_be_shared(folder, tmp_path):
    run = open_run(tmp_path, settings={"beta": 0.1, "K": 2}, cache=folder / "cache")
    assert run.preset == replace(TINY, beta=0.1, K=2) and run.key != open_run(folder, K=2).key
    assert run.data("val").folder.parent == folder / "cache" and not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="a preset has no field betta"):
        open_run(tmp_path, settings={"betta": 1})


def test_the_history_of_stage_1_ends_with_the_iou_that_its_masks_have_on_val(folder):
    run = open_run(folder)
    last = run.history("cam").iloc[-1]
    assert [last[f"IoU {c}"] for c in run.spec.classes] == pytest.approx(
        run.scores("cam", "val")["iou"], nan_ok=True
    )


def test_the_counts_of_the_slides_add_up_to_the_scores(folder):
    run = open_run(folder)
    counts = run.slide_counts("cam")
    assert list(counts) == sorted(set(run.data("test").slides))
    total = metrics.scores(sum(counts.values()))
    assert total["miou"] == run.scores("cam")["miou"] and total["iou"] == run.scores("cam")["iou"]
    first = np.array(run.data("test").slides) == min(counts)
    oracle = run.slide_counts("cam", image_labels="oracle")[min(counts)]
    truth, said = (
        np.asarray(run.data("test").masks)[first],
        run.masks("cam", "test", "oracle")[first],
    )
    np.testing.assert_array_equal(oracle, metrics.confusion(truth, said, 4))


def test_zero_shot_gives_each_patch_the_class_of_its_nearest_prototype(folder, monkeypatch):
    run = open_run(folder)
    truth, said = run.zero_shot()
    features = run.bank.normalize(experiment.encoders.embed(run.encoder, run.data("test")))
    for n, mask in enumerate(run.data("test").masks):
        assert truth[n] == max(range(4), key=lambda c: (mask == c).sum())
        assert said[n] == int(np.argmax([features[n] @ p for p in run.bank.prototypes])) // TINY.K
    blank = np.array(run.data("test").masks)
    blank[2] = 4
    monkeypatch.setattr(run.data("test"), "masks", blank)
    assert np.array_equal(
        run.zero_shot()[0], np.delete(truth, 2)
    )  # a patch of ignore alone has no main class


def test_convolutions_in_the_place_of_similarities_still_learn_from_the_matching_loss(
    folder, tmp_path
):
    run = open_run(tmp_path, settings={"similarity": "convolution"}, cache=folder / "cache")
    net, history = run.net("pbip_stage1"), run.history("pbip_stage1")
    assert (
        net.prototypes is None
        and net.levels == TINY.levels
        and [h.weight.shape[0] for h in net.heads] == [4] * 3
    )
    assert history["matching"][0] > 0 and run.bank.K == TINY.K
    assert history["loss"][0] == pytest.approx(
        TINY.alpha * history["classification"][0] + TINY.beta * history["matching"][0]
    )
    plain = open_run(folder).net("cam")
    assert plain.levels == TINY.cam_levels and len(plain.heads) == len(TINY.cam_levels)
