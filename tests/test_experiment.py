"""A run loads what its folder holds for the same key and makes the rest; its steps agree with the
kernels they string together."""

from dataclasses import replace

import numpy as np
import pytest
import small_clip
import torch

from protolib import cams, experiment, metrics, presets, results
from protolib.data import phantom
from protolib.experiment import Run
from protolib.losses import trust
from protolib.matching import nearest_classes

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


def open_run(folder, p=TINY, **more):
    return Run(p, run_dir=folder, device="cpu", **more)


def test_record_is_complete_and_a_second_run_only_loads(folder, monkeypatch):
    first = open_run(folder).record()
    assert list(first["methods"]) == list(results.METHODS)
    trained = [m for m in results.METHODS if m != "nearest_prototype"]
    assert list(first["seconds"]) == trained and min(first["seconds"].values()) > 0

    def again(*_, **__):
        pytest.fail("a step was made again")

    for place, name in (
        (experiment.bank, "build"),
        (experiment.losses, "cam_loss"),
        (experiment.losses, "pbip_loss"),
        (experiment.segmentation, "segmentation_loss"),
        (experiment.encoders, "embed"),
        (experiment.cams, "pseudo_masks"),
        (experiment.cams, "over_split"),
    ):
        monkeypatch.setattr(place, name, again)
    assert open_run(folder).record()["methods"] == first["methods"]


def test_a_run_leaves_out_what_would_be_another_method_again(tmp_path):
    def methods(p):
        return set(results.METHODS) - set(open_run(tmp_path, p).methods)

    assert methods(TINY) == set()
    assert methods(presets.with_masked_images(TINY)) == {"pbip_masked_image"}
    learned = replace(TINY, prototypes="learnable", beta=0.0)
    assert methods(learned) == {"pbip_masked_image", "nearest_prototype"}
    plain = replace(TINY, similarity="convolution", beta=0.0, refine="gates")
    assert methods(plain) == {"pbip_masked_image", "nearest_prototype", "prototypes"}
    assert open_run(tmp_path, plain).titles["pbip_stage1"] == "1x1 convolutions behind SSHR's gates"
    assert open_run(tmp_path, learned).titles["pbip_stage1"] == "Learned prototypes, LPD"
    assert open_run(tmp_path).titles == results.METHODS


def test_the_paper_s_loss_is_a_run_of_its_own_beside_and_shares_the_cache(folder):
    run = open_run(folder)
    inner = run.masked_images
    assert inner.preset == presets.with_masked_images(TINY) and inner.cache == run.cache
    assert inner.folder == folder / "pbip_masked_image"
    assert run.key("network", "pbip_masked_image") == inner.key("network", "pbip_stage1")
    assert run.history("pbip_masked_image").equals(inner.history("pbip_stage1"))
    counted = run.counts("pbip_masked_image")
    assert experiment.read_json(folder / "pbip_masked_image" / "counts_test.json")["slides"]
    assert list(counted) == list(inner.counts("pbip_stage1"))
    assert run.scores("pbip_masked_image") == inner.scores("pbip_stage1")


def test_same_seed_same_numbers_in_another_folder(folder, tmp_path):
    there, here = open_run(tmp_path), open_run(folder)
    assert there.scores("prototypes") == here.scores("prototypes")
    np.testing.assert_array_equal(there.bank.prototypes, here.bank.prototypes)


@pytest.mark.parametrize("step", ["bank", "network", "pseudo_masks", "counts"])
def test_another_seed_or_setting_has_another_key(folder, step):
    key = open_run(folder).key(step, "pbip_stage1")
    assert open_run(folder).key(step, "pbip_stage1") == key
    others = open_run(folder, seed=1), open_run(folder, replace(TINY, K=2))
    assert len({key, *(run.key(step, "pbip_stage1") for run in others)}) == 3


@pytest.mark.parametrize(
    "given, message",
    [
        ({"seed": -1}, "seed = -1; give a whole number from 0 on"),
        ({"seed": 1.0}, "seed = 1.0; give a whole number"),
        ({"seed": True}, "seed = True; give a whole number"),
        ({"device": "tpu"}, "device 'tpu' is not here; choose auto or one of .*cpu"),
        ({"device": "cpu:1"}, "device 'cpu:1' is not here"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not here"),
    ],
)
def test_a_seed_or_device_that_cannot_be_is_refused_before_work(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        Run(TINY, run_dir=tmp_path / "run", **({"device": "cpu"} | given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "cuda, mps, wanted",
    [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda"), (2, True, "cuda")],
)
def test_auto_takes_the_fastest_device_that_is_here(monkeypatch, cuda, mps, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert experiment.device_of("auto") == wanted
    here = {"cpu"} | ({"cuda", "cuda:0", "cuda:1"} if cuda else set()) | ({"mps"} if mps else set())
    for name in ("cpu", "mps", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:x", "mps:0", "auto:0"):
        if name in here:
            assert experiment.device_of(name) == name
        else:
            with pytest.raises(ValueError, match=f"device '{name}' is not here; choose auto or"):
                experiment.device_of(name)


def test_oracle_masks_hold_no_class_that_the_truth_lacks(folder):
    run = open_run(folder)
    test = run.data("test")
    masks = run.masks("pbip_stage1", "test", range(len(test)), "oracle")
    for mask, label in zip(masks, test.labels, strict=True):
        assert label[np.unique(mask)].all()


def test_scores_are_those_of_the_masks(folder):
    run = open_run(folder)
    val = run.data("val")
    masks = run.masks("cam", "val", range(len(val)))
    matrix = metrics.confusion(np.array(val.masks), masks, 4)
    assert run.scores("cam", "val")["miou"] == metrics.scores(matrix)["miou"]
    # some of them, in the order asked for
    np.testing.assert_array_equal(run.masks("cam", "val", [5, 2]), masks[[5, 2]])


def test_pseudo_masks_carry_the_run_and_hold_only_labelled_classes(folder):
    run = open_run(folder)
    patches = run.pseudo_masks()
    manifest = experiment.read_json(folder / "pseudo_masks" / "manifest.json")
    assert (manifest["dataset"], manifest["split"], manifest["key"]) == (
        "phantom",
        "train",
        run.key("pseudo_masks"),
    )
    for i, label in enumerate(run.data("train").labels):
        assert label[patches[i]["mask"].unique().numpy()].all()


def test_a_run_forgets_its_steps_but_not_the_patches_and_features(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    before = run.bank
    cached = sorted(tmp_path.glob("cache/*"))
    for word in ("no", "False", 1, None):
        with pytest.raises(ValueError, match="retrain = .*; give True or False"):
            run.forget(word)
    run.forget(False)
    assert (run.folder / "bank").is_dir()
    run.forget(True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert sorted(tmp_path.glob("cache/*")) == cached
    monkeypatch.setattr(experiment.encoders, "embed", lambda *_, **__: pytest.fail("embedded"))
    again = run.bank  # built anew, not the one in memory
    assert again is not before and again.members == before.members


def test_full_supervision_takes_val_where_training_masks_are_missing(folder, monkeypatch):
    run = open_run(folder)
    assert run.masked_split().patches.split == "train"
    key = run.key("network", "full_supervision")
    monkeypatch.setattr(run.data("train"), "masks", None)
    assert run.masked_split().patches.split == "val"
    assert run.key("network", "full_supervision") != key


def test_predicted_labels_of_stage_one_are_positive_logits(folder):
    run = open_run(folder)
    index, maps, labels = next(run.predictions("cam", "test"))
    images = torch.stack([run.data("test")[int(i)]["image"] for i in index]).float() / 255
    found, logits = cams.predict(run.net("cam"), images, run.preset_of("cam"), "none")
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
    name, cluster, published, tmp_path
):
    tiny = {
        "size": 64,
        "N": 2,
        "backbone": "mit_test",
        "encoder": "swin_test",
        "cluster_encoder": cluster,
        "epochs": 1,
        "stage2_size": 64,
        "stage2_backbone": "mit_test",
        "stage2_stride": 16,
        "stage2_epochs": 1,
        "chunk": 7,
    }
    p = replace(presets.PRESETS[name], name="tiny", **tiny)
    run = Run(p, "bcss-wsss", published, tmp_path, device="cpu")
    made = run.record()
    history, released = run.history("pbip_stage1"), name == "released_code"
    assert "pbip_masked_image" not in made["methods"]  # pbip_stage1 is it
    assert run.protocol == (metrics.Protocol("oracle", "counted") if released else metrics.DEFAULT)
    for block in made["methods"].values():
        assert (block["image_labels"], block["ignore"]) == ("predicted", p.ignore)
        oracle = block["oracle"]
        assert (oracle["image_labels"], oracle["ignore"]) == ("oracle", p.ignore)
    expected = p.alpha * history["classification"] + p.beta * history["matching"]
    np.testing.assert_allclose(
        history["loss"], expected, rtol=1e-5
    )  # one epoch's float32 means of the same batches
    assert (history["matching"] > 0).all() and run.bank.kind == p.prototypes
    truth = run.data("test").labels
    masks = run.masks("pbip_stage1", "test", range(len(truth)), "oracle")
    allowed = truth[
        np.arange(len(masks))[:, None, None], masks
    ]  # a mask shows only what its label allows ...
    assert (
        allowed.all() or released
    )  # ... but where the released code scores all of them 0, and the first class wins


def test_learned_prototypes_need_no_matching_and_move_apart(published, tmp_path):
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
    run = Run(learned, "bcss-wsss", published, tmp_path, device="cpu")
    history = run.history("pbip_stage1")
    steps = len(run.data("train")) // learned.batch
    with_diversity = history["loss"][1] - history["classification"][1]
    assert with_diversity == pytest.approx(0.5 * history["diversity"][1], rel=1e-4)
    first = history["loss"][0] - history["classification"][0]  # the first step is without
    assert 0 < first < 0.5 * history["diversity"][0] * (steps - 0.5) / steps
    assert run.net("pbip_stage1").prototypes.shape == (4 * learned.K, 512)
    assert not (tmp_path / "bank").exists()


def test_the_cache_may_be_shared(folder, tmp_path):
    run = open_run(tmp_path, cache=folder / "cache")
    assert run.data("val").folder.parent == folder / "cache" and not (tmp_path / "cache").exists()


def test_the_history_of_stage_1_ends_with_the_iou_that_its_masks_have_on_val(folder):
    run = open_run(folder)
    last = run.history("cam").iloc[-1]
    assert [last[f"IoU {c}"] for c in run.spec.classes] == pytest.approx(
        run.scores("cam", "val")["iou"], nan_ok=True
    )


def test_the_counts_of_the_slides_add_up_to_the_scores(folder):
    run = open_run(folder)
    counts, test = run.counts("cam"), run.data("test")
    assert list(counts) == sorted(set(test.slides))
    rows = np.arange(len(test))
    for image_labels in experiment.LABELS:
        masks = run.masks("cam", "test", rows, image_labels)
        for ignore in metrics.IGNORE:
            protocol = metrics.Protocol(image_labels, ignore)
            scorer = metrics.Scorer(4, protocol)
            scorer.update(np.asarray(test.masks), masks)
            assert run.scores("cam", protocol=protocol) == scorer.result()
            for slide, found in counts.items():
                own = rows[np.array(test.slides) == slide]
                wanted = metrics.Counts.of(test.masks[own], masks[own], 4, ignore)
                np.testing.assert_array_equal(found[image_labels][ignore].matrix, wanted.matrix)
                np.testing.assert_array_equal(found[image_labels][ignore].boundary, wanted.boundary)


def test_a_patch_whose_name_tells_no_slide_is_one_by_itself(folder, monkeypatch):
    run = open_run(folder)
    test = run.data("test")
    monkeypatch.setattr(test, "slides", [""] * len(test))
    assert sorted(run._count("nearest_prototype", "test")) == sorted(test.ids)


def test_zero_shot_gives_each_patch_the_class_of_its_nearest_prototype(folder, monkeypatch):
    run = open_run(folder)
    truth, said = run.zero_shot()
    embedded = experiment.encoders.embed(run.encoder, run.data("test"), pooled=True)
    features = run.bank.normalize(embedded)
    for n, mask in enumerate(run.data("test").masks):
        assert truth[n] == max(range(4), key=lambda c: (mask == c).sum())
        assert said[n] == int(np.argmax([features[n] @ p for p in run.bank.prototypes])) // TINY.K
    blank = np.array(run.data("test").masks)
    blank[2] = 4
    monkeypatch.setattr(run.data("test"), "masks", blank)
    # a patch of ignore alone has no main class
    assert np.array_equal(run.zero_shot()[0], np.delete(truth, 2))


def test_the_nearest_prototype_of_each_position_is_a_method_that_trains_nothing(folder):
    run = open_run(folder)
    with pytest.raises(ValueError, match="nearest_prototype trains nothing"):
        run.net("nearest_prototype")
    image = run.data("test")[3]["image"][None].float() / 255
    scores, logits = run.predictor("nearest_prototype")(image)
    assert scores.shape == (1, 4, 64, 64)
    maps = run.encoder.maps(image)
    close = nearest_classes(
        maps, torch.from_numpy(run.bank.prototypes), run.bank.normalize, (4, 8, 8)
    )
    up = torch.nn.functional.interpolate(close, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(scores, up)
    shares = np.bincount(up.argmax(1).flatten(), minlength=4) / 64**2
    assert (logits[0] > 0).tolist() == (shares >= 0.03).tolist()
    assert not (folder / "nearest_prototype" / "checkpoint.pt").exists()


def test_convolutions_in_the_place_of_similarities_still_learn_from_the_matching_loss(
    folder, tmp_path
):
    run = open_run(tmp_path, replace(TINY, similarity="convolution"), cache=folder / "cache")
    net, history = run.net("pbip_stage1"), run.history("pbip_stage1")
    assert (
        net.prototypes is None
        and net.levels == TINY.levels
        and [h.weight.shape[0] for h in net.heads] == [4] * 3
    )
    assert history["matching"][0] > 0 and run.bank.K == TINY.K
    weight = trust(run.bank, TINY) * TINY.beta  # its bank is thin
    assert 0 < weight < TINY.beta
    assert history["loss"][0] == pytest.approx(
        TINY.alpha * history["classification"][0] + weight * history["matching"][0]
    )
    plain = open_run(folder).net("cam")
    assert run.key("network", "prototypes") != run.key("network", "cam")
    assert plain.levels == TINY.cam_levels and len(plain.heads) == len(TINY.cam_levels)


def test_the_dials_of_the_phantom_reach_the_patches_and_the_keys(folder):
    plain = open_run(folder)
    dials = {"drawn_pure": 1.0, "drawn_heterogeneity": 0.9, "drawn_similarity": 0.1}
    run = plain.variant(replace(TINY, **dials), folder)
    drawing = phantom.Drawing(8, 0, heterogeneity=0.9, similarity=0.1, pure=1.0)
    np.testing.assert_array_equal(run.data("val").images, phantom.draw("val", 64, drawing).images)
    assert (run.data("val").labels.sum(1) == 1).all() and run.key("bank") != plain.key("bank")
    together = plain.variant(replace(TINY, drawn_together=1.0, drawn_never_pure=1), folder)
    drawing = phantom.Drawing(8, 0, together=1.0, never_pure=1)
    np.testing.assert_array_equal(
        together.data("val").masks, phantom.draw("val", 64, drawing).masks
    )
    # as the data is asked for, a mean over seeds does not mix dials
    assert len({r.base("network", "cam") for r in (plain, run, together)}) == 3
    assert plain.variant(TINY, folder).data("val") is plain.data("val")


def test_convolutions_without_matching_need_no_bank_and_no_encoder(folder, tmp_path, monkeypatch):
    levels = {"levels": (2, 4), "level_weights": (0.5, 0.5), "fusion": (0.0, 1.0)}
    p = replace(TINY, similarity="convolution", beta=0.0, refine="gates", diffusion=3, **levels)
    run = open_run(tmp_path, p, cache=folder / "cache")
    monkeypatch.setattr(experiment.encoders, "load", lambda *_: pytest.fail("an encoder"))
    history, net = run.history("pbip_stage1"), run.net("pbip_stage1")
    assert set(history) >= {"loss"} and "matching" not in history
    assert not (tmp_path / "bank").exists() and len(net.gates) == 2
    assert all(gate.g1.abs() > 0 and gate.g2.abs() > 0 for gate in net.gates)  # they learned
    title = run.record(["cam", "pbip_stage1"])["methods"]["pbip_stage1"]["title"]
    assert title == "1x1 convolutions behind SSHR's gates" and run.net("cam").gates is None


def test_learned_prototypes_are_as_wide_as_the_encoder_that_they_are_matched_with(tmp_path):
    p = replace(TINY, prototypes="learnable", beta=0.1, matching_after=2, diversity=0.0, epochs=2)
    run = open_run(tmp_path, p)
    assert run.net("pbip_stage1").prototypes.shape == (12, 496) and not (tmp_path / "bank").exists()
    history, steps = run.history("pbip_stage1"), 4
    assert (history["matching"] > 0).all()
    added = history["loss"] - history["classification"]
    assert added.to_numpy() == pytest.approx(0.1 * history["matching"].to_numpy(), rel=1e-4)
    assert len(run.data("train")) // p.batch == steps


def test_text_is_blended_into_the_bank_and_names_patches_without_one(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PROTOLIB_WEIGHTS", str(tmp_path))
    small_clip.write(tmp_path, monkeypatch, "clip")
    images = replace(TINY, encoder="clip", normalise="none", look="masked_image", threshold="map")
    text = replace(images, text_share=0.6)
    one, two = (open_run(tmp_path / name, p) for name, p in (("one", images), ("two", text)))
    said = {c: [f"a photo of {t}"] for c, t in zip(one.spec.classes, one.spec.titles)}
    assert two.prompts == said
    T = np.concatenate([experiment.encoders.embed_texts("clip", s) for s in said.values()])
    np.testing.assert_allclose(two.text, T, rtol=0, atol=1e-6)
    P = 0.6 * T.repeat(3, 0) + 0.4 * one.bank.prototypes
    P /= np.linalg.norm(P, axis=1, keepdims=True)
    np.testing.assert_allclose(two.bank.prototypes, P, rtol=0, atol=1e-6)
    assert one.key("bank") != two.key("bank")
    # text alone: by class tokens, also where the preset looks at the tokens of positions
    pooled = open_run(tmp_path / "three", replace(TINY, encoder="clip"))
    truth, found = pooled.zero_shot(prompt="text")
    nearest = (one.features("test") @ T.T).argmax(1)
    assert found.tolist() == nearest[one.data("test").masks.reshape(8, -1).min(1) < 4].tolist()
    assert len(truth) == len(found) and not (tmp_path / "three" / "bank").exists()
    before = one.key("bank"), two.key("bank")
    (tmp_path / "clip_tokenizer.json").unlink()  # other words are another bank where text has a say
    assert one.key("bank") == before[0] and two.key("bank") != before[1]


def test_other_prompts_are_another_bank_and_another_zero_shot(folder):
    p = replace(TINY, encoder="clip", normalise="none", look="masked_image", threshold="map")
    two = [open_run(folder, replace(p, text_share=0.6, prompts=n)) for n in ("photo", "described")]
    for step in ("bank", "text"):
        assert two[0].key(step) != two[1].key(step)
    two = [open_run(folder, replace(p, prompts=name)) for name in ("photo", "described")]
    assert two[0].key("bank") == two[1].key("bank")  # no text, no prompts
