"""Nothing that was kept is served when what it was made from has changed, and nothing else is made
again: every step of a run, one change after the other."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from protolib import bank, experiment, metrics, presets
from protolib.data import phantom
from protolib.experiment import READS, Run
from protolib.keys import code_of
from protolib.nets import backbones, encoders, weights
from protolib.presets import MATCHING, Preset

pytestmark = pytest.mark.slow  # it trains, again and again

TINY = replace(
    presets.PRESETS["smoke"],
    name="tiny",
    K=2,
    N=2,
    restarts=1,
    encoder="swin_test",
    backbone="mit_test",
    levels=(1, 2, 3),
    cam_levels=(3,),
    stage2_size=64,
    stage2_rates=(1, 2),
    tta="none",
    pseudo_tta="none",
    stage2_tta=False,
)
TOML = """\
name = "mine"
classes = ["TUM", "STR", "LYM", "NEC"]
titles = ["tumour", "stroma", "lymphocytes", "necrosis"]
palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [153, 0, 255], [255, 255, 255]]
codes = { 0 = 0, 1 = 1, 2 = 2, 3 = 3 }
"""
METHODS = (
    *("cam", "nearest_prototype", "prototypes", "pbip_masked_image", "pbip_stage1"),
    *("pbip_stage2", "full_supervision"),
)
STAGE1 = {"cam", "prototypes", "pbip_masked_image", "pbip_stage1"}


def count(methods) -> set[str]:
    return {f"counts of {method}" for method in methods}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A small folder of patches and, beside it, a run of them with every method counted."""
    place = tmp_path_factory.mktemp("done")
    phantom.write_folder(place / "set", {"train": 48, "val": 6, "test": 6}, size=64, seed=0)
    (place / "set" / "dataset.toml").write_text(TOML, "utf-8")
    run = open_run(place)
    for method in METHODS:
        run.scores(method)
        if method != "nearest_prototype":
            run.history(method)
    return place


@pytest.fixture
def place(done, tmp_path) -> Path:
    """A copy of that run and its patches, with the times of the files."""
    return Path(shutil.copytree(done, tmp_path / "copy"))


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """The steps that are made from here on, in their order; loading is none."""
    made = []

    def told(owner, name, step):
        real = getattr(owner, name)

        def wrapped(*args, **more):
            made.append(step(*args, **more))
            return real(*args, **more)

        monkeypatch.setattr(owner, name, wrapped)

    def trained(net, patches, loss, p, place, *more):
        def told_loss(net, batch):
            name = place.folder.name
            inner = place.folder.parent.name == "pbip_masked_image"
            if (said := "pbip_masked_image" if inner else name) not in made:
                made.append(said)
            return loss(net, batch)

        return fit(net, patches, told_loss, p, place, *more)

    def fit_of(*args, on_epoch=None):
        return trained(*args) if on_epoch is None else trained(*args, None, on_epoch)

    fit = experiment.fit
    monkeypatch.setattr(experiment, "fit", fit_of)
    told(bank, "build", lambda *_: "bank")
    told(experiment.cams, "pseudo_masks", lambda *_: "pseudo masks")
    told(encoders, "embed", lambda encoder, own, *_: f"features of {own.dataset.split}")

    def counted(run, method, split):
        inner = run.folder.name == "pbip_masked_image"
        return f"counts of {'pbip_masked_image' if inner else method}"

    told(Run, "_count", counted)
    return made


def open_run(place: Path, p: Preset = TINY, folder: str = "run", **more) -> Run:
    given = {"cache": place / "cache", "device": "cpu"} | more
    return Run(p, "custom", place / "set", place / folder, **given)


def score(run: Run, methods=METHODS) -> dict[str, dict]:
    return {method: run.scores(method) for method in methods}


def relabel(folder: Path, codes: list[int]) -> None:
    """The annotator corrects every mask of a folder: code i becomes codes[i]."""
    for path in folder.glob("*.png"):
        Image.fromarray(np.array(codes, np.uint8)[np.asarray(Image.open(path))]).save(path)


def slow_scores(run: Run, method: str, split: str = "test") -> dict:
    """The scores of masks that are predicted now, against the masks that lie there now."""
    truth = run.data(split)
    scorer = metrics.Scorer(run.spec.C, metrics.Protocol(ignore=run.preset.ignore))
    scorer.update(np.asarray(truth.masks), run.masks(method, split, range(len(truth))))
    return scorer.result()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# What was read has changed


def test_nothing_is_made_again_where_nothing_has_changed(place, steps):
    before = score(open_run(place))
    assert score(open_run(place)) == before and steps == []


def test_scores_of_corrected_test_masks_are_counted_anew_and_nothing_is_trained(place, steps):
    before = score(open_run(place))
    relabel(place / "set" / "test" / "mask", [0, 1, 3, 2, 4])  # LYM and NEC were swapped
    after, run = score(open_run(place)), open_run(place)
    assert set(steps) == count(METHODS)
    for method in METHODS:
        assert after[method] == slow_scores(run, method) != before[method]


def test_corrected_val_masks_train_full_supervision_anew_and_nothing_else(place, steps):
    run = open_run(place)
    before, net = score(run), run.net("full_supervision")
    assert run.history("cam").filter(like="IoU").shape == (1, 4)
    relabel(place / "set" / "val" / "mask", [0, 1, 3, 2, 4])
    run = open_run(place)
    after = score(run)
    # training masks are not published here: full supervision trains on val
    assert set(steps) == {"full_supervision", *count(["full_supervision"])}
    assert not same(run.net("full_supervision"), net)
    assert all((after[m] == before[m]) == (m != "full_supervision") for m in METHODS)
    # the IoU in the history of stage 1 were counted on the masks as they were
    for method in STAGE1:
        history = run.history(method)
        assert not [name for name in history if "IoU" in name or name == "watched"]
        assert "loss" in history and len(history) == 1
    assert run.scores("cam", "val") == slow_scores(run, "cam", "val")


def test_other_codes_of_the_masks_are_other_masks(place, steps):
    before = score(open_run(place))
    text = TOML.replace("2 = 2, 3 = 3", "2 = 3, 3 = 2")
    (place / "set" / "dataset.toml").write_text(text, "utf-8")
    run = open_run(place)
    after = score(run)
    assert {"full_supervision", *count(METHODS)} <= set(steps)
    for method in METHODS:
        assert after[method] == slow_scores(run, method) != before[method]


def test_a_new_training_patch_makes_all_anew(place, steps):
    one = sorted((place / "set" / "training").glob("*.png"))[0]
    Image.fromarray(255 - np.asarray(Image.open(one))).save(one)
    score(open_run(place))
    networks = STAGE1 | {"pbip_stage2"}  # full supervision sees no training patch here
    assert networks | {"features of train", "bank", "pseudo masks"} <= set(steps)
    assert "full_supervision" not in steps


def brought(folder: Path, name: str, seed: int, net: torch.nn.Module) -> None:
    """A file of weights appears, or takes the place of another one."""
    generator = torch.Generator().manual_seed(seed)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for value in state.values():
        if value.is_floating_point():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    folder.mkdir(exist_ok=True)
    save_file(state, folder / f"{name}.safetensors")


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """The folder where people bring weights; "mit_test" and "swin_filed" are published by someone
    who is not to be asked."""
    monkeypatch.setenv("PROTOLIB_WEIGHTS", str(tmp_path / "weights"))
    for name in ("mit_test", "swin_filed"):
        published = weights.Published("none stated", page="nowhere", file=name)
        monkeypatch.setitem(weights.PUBLISHED, name, published)

    def swin_filed(size: int) -> encoders.Encoder:
        file, state = encoders._found("swin_filed")
        net = encoders.Swin(16, **encoders.SWIN_TEST)
        info = weights.put(net, state, file)
        return encoders.Encoder("swin_filed", net, 16, info, None, 64, encoders.BGR)

    monkeypatch.setitem(encoders.ENCODERS, "swin_filed", swin_filed)
    return tmp_path / "weights"


def test_weights_that_arrive_after_a_run_from_random_ones_are_trained_from(place, steps, shelf):
    before = open_run(place)
    nets = {m: before.net(m) for m in (*METHODS[-3:], "cam")}
    assert steps == []  # nobody has the weights: as it was
    file = backbones.MiT(16, **backbones.MIT_TEST)
    for seed in (1, 2):  # a file appears, and is replaced
        brought(shelf, "mit_test", seed, file)
        steps.clear()
        run = open_run(place)
        for method, net in nets.items():
            assert run.net(method).net.info.sha256 == weights.sha256(shelf / "mit_test.safetensors")
            assert not same(run.net(method), net)
            nets[method] = run.net(method)
        assert set(steps) == {*nets, "pseudo masks"}  # the bank has no part in it


def test_an_encoder_whose_file_is_replaced_has_another_bank(place, steps, shelf):
    p, kept = replace(TINY, encoder="swin_filed"), None
    for seed in (1, 2):
        brought(shelf, "swin_filed", seed, encoders.Swin(16, **encoders.SWIN_TEST))
        steps.clear()
        run = open_run(place, p, "filed")
        run.scores("nearest_prototype")
        net, found = run.net("pbip_stage1"), run.bank.prototypes
        assert {"features of train", "bank", "pbip_stage1", *count(["nearest_prototype"])} == set(
            steps
        )
        assert kept is None or not np.array_equal(found, kept[0]) and not same(net, kept[1])
        kept = found, net
    steps.clear()
    assert same(open_run(place, p, "filed").net("pbip_stage1"), net) and steps == []


# The code has changed


@pytest.mark.parametrize("folder", ["", "data", "nets"])
def test_the_hash_of_a_folder_covers_every_constant_and_no_comment(tmp_path, folder):
    source = Path(experiment.__file__).parent / folder
    shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    copy = tmp_path / "copy"
    wanted = experiment.CODE[folder]
    assert code_of(copy) == wanted
    texts = {path: path.read_text("utf-8") for path in copy.glob("*.py")}
    for path, text in texts.items():
        path.write_text(f"# a comment at the start\n{text}\n\n# and one at the end\n", "utf-8")
    assert code_of(copy) == wanted
    for path, text in texts.items():
        path.write_text(f"{text}\nANOTHER = 1\n", "utf-8")
        assert (code_of(copy) == wanted) == (path.name == "__main__.py"), path.name
        path.write_text(text, "utf-8")
    (copy / "new.py").write_text("", "utf-8")
    assert code_of(copy) != wanted


def test_a_changed_band_is_another_code_and_a_changed_docstring_is_not(tmp_path):
    source = Path(experiment.__file__).parent
    for name in ("metrics.py", "matching.py"):
        shutil.copy(source / name, tmp_path)
    before, file = code_of(tmp_path), tmp_path / "metrics.py"
    text = file.read_text("utf-8")
    assert "DILATION = 0.02" in text and '"""Count pixels by true' in text
    file.write_text(text.replace("DILATION = 0.02", "DILATION = 0.03"), "utf-8")
    assert code_of(tmp_path) != before
    file.write_text(text.replace('"""Count pixels by true', '"""Tally pixels by true'), "utf-8")
    assert code_of(tmp_path) == before
    file.write_text(text.replace("raise ValueError(", "raise ValueError(  # loudly\n", 1), "utf-8")
    assert code_of(tmp_path) == before


@pytest.mark.parametrize("folder", ["", "data", "nets"])
def test_another_code_is_another_key_of_every_step_that_runs_it(place, monkeypatch, folder):
    run = open_run(place)
    asked = [("features", ""), ("bank", ""), ("pseudo_masks", "")]
    asked += [("network", m) for m in METHODS if m != "nearest_prototype"]
    asked += [("counts", m) for m in METHODS]
    before = [run.key(*what) for what in asked]
    assert len(set(before)) == len(asked)
    monkeypatch.setitem(experiment.CODE, folder, "edited")
    after = [run.key(*what) for what in asked]
    kept = [what for what, a, b in zip(asked, before, after) if a == b]
    assert kept == ([("features", "")] if folder == "" else [])  # embedding runs no kernel


# A setting has changed


CHANGES = {
    "stage2_lr": (
        {"stage2_lr": 0.004},
        {"pbip_stage2", "full_supervision", *count(["pbip_stage2", "full_supervision"])},
    ),
    "tta": ({"tta": "mirror"}, count(STAGE1)),
    "ignore": ({"ignore": "counted"}, set()),
    "image_labels": ({"image_labels": "oracle"}, set()),
    "merge_test": (
        {"merge_test": "mean"},
        {"pseudo masks", "pbip_stage2", *count(STAGE1 | {"pbip_stage2"})},
    ),
    "stage2_tta": ({"stage2_tta": True}, count(["pbip_stage2", "full_supervision"])),
    "stain_jitter": (
        {"stain_jitter": 0.1},
        {*STAGE1, "pseudo masks", "pbip_stage2", *count(STAGE1 | {"pbip_stage2"})},
    ),
    "beta": (
        {"beta": 0.3},
        {"pbip_stage1", "pseudo masks", "pbip_stage2", *count(["pbip_stage1", "pbip_stage2"])},
    ),
    "cam_fusion": ({"cam_fusion": (0.5,)}, count(["cam"])),
    # of the bank, and of all that rests on it
    "restarts": (
        {"restarts": 2},
        {"bank", "pseudo masks", *METHODS[2:6], *count(METHODS[1:6])} - {"nearest_prototype"},
    ),
}


@pytest.mark.parametrize("settings, wanted", CHANGES.values(), ids=CHANGES)
def test_a_changed_setting_makes_what_reads_it_and_nothing_else(place, steps, settings, wanted):
    run = open_run(place, replace(TINY, **settings))
    found = score(run)
    assert set(steps) == wanted
    assert run.scores("cam")["ignore"] == settings.get("ignore", "dropped")
    assert found["cam"] == slow_scores(run, "cam")


def test_a_new_weight_of_the_matching_loss_leaves_the_networks_without_it(place, steps):
    before = {m: open_run(place).net(m) for m in ("cam", "prototypes", "pbip_stage1")}
    run = open_run(place, replace(TINY, beta=0.3))
    assert same(run.net("cam"), before["cam"]) and same(run.net("prototypes"), before["prototypes"])
    assert not same(run.net("pbip_stage1"), before["pbip_stage1"]) and steps == ["pbip_stage1"]


# What is read is what is declared

# a preset of each kind: what one of them does not read, another does
SHORT_LIST = {
    "masked pooling": {},
    "as released": {
        "look": "masked_image",
        "pairs": "subclasses",
        "match_maps": "last",
        "span": "raw",
        "threshold": "image",
        "fill": "minmax",
        "negatives": "all",
        "pooling": "batch",
        "cluster_encoder": "lite0",
        "prototypes": "centre",
        "warmup": 1.0,
    },
    "learned": {"prototypes": "learnable", "beta": 0.0, "diversity": 0.5},
    "learned and matched": {"prototypes": "learnable", "beta": 0.1, "diversity": 0.5},
    "gates, diffused": {"similarity": "convolution", "beta": 0.0, "refine": "gates"}
    | {"diffusion": 3},
}
# whose value a step's own preset has, where it is not that of the field's name
CAM = {"levels": "cam_levels", "level_weights": "cam_levels", "fusion": "cam_fusion"}
CAM |= {"similarity": "", "pairs": "", "refine": ""}
STAGE2 = {"epochs": "stage2_epochs", "lr": "stage2_lr", "lr_power": "", "warmup": ""}
STAGE2 |= {"warmup_ratio": "", "stain_jitter": ""}
# they hand presets on or put their fields into keys: no part of a step
UNCOUNTED = ("Run._hash", "Run.key", "Run.data", "Run.drawn", "Run.methods", "Run.preset_of")
UNCOUNTED += ("stage2", "Run._pooled")  # a word of the key of features
FIELDS = {f.name for f in fields(Preset)}
READ: set[str] = set()


class Recorder(Preset):
    """A preset that remembers which of its fields were read; what copies it remembers too."""

    def __getattribute__(self, name):
        if name in FIELDS:
            caller = sys._getframe(1)
            by = caller.f_code.co_qualname if hasattr(caller.f_code, "co_qualname") else ""
            module = caller.f_globals["__name__"]
            keys = by.startswith(UNCOUNTED) or "_key" in by
            if not keys and module not in ("dataclasses", "protolib.presets"):
                READ.add(name)
        return super().__getattribute__(name)


def made_and_declared(run: Run, monkeypatch):
    """Yield each step of a run with the fields that it read, those that its own key holds, and
    those that it holds with the keys that it rests on."""
    declared, real = [], Run._hash

    def noted(self, step, reads, *rests, **more):
        declared.append(set(reads))
        return real(self, step, reads, *rests, **more)

    monkeypatch.setattr(Run, "_hash", noted)
    val = lambda p, net: {"watched": ""}
    on_val, bankless = Run._on_val, "nearest_prototype" not in run.methods
    monkeypatch.setattr(run, "_on_val", val)

    def step(name, make, key, own=None):
        run.__dict__.pop("encoder", None)  # read anew by whoever needs it
        READ.clear()
        make()
        read = {(own or {}).get(field, field) for field in READ} - {"", "name"}
        declared.clear()
        key()  # the keys that it rests on first, its own last
        return name, read, declared[-1], set().union(*declared)

    for split in ("train", "val", "test"):
        run.data(split)
    if not bankless:
        yield step("features", run.features, partial(run.key, "features"))
        if run.preset.cluster_encoder:
            run.features("train", run.preset.cluster_encoder)
        yield step("bank", lambda: run.bank, partial(run.key, "bank"))
    for method in ("cam", "prototypes", "pbip_stage1", "pbip_stage2", "full_supervision"):
        if method not in run.methods:
            continue
        if method == "pbip_stage2":
            key = partial(run.key, "pseudo_masks")
            yield step("pseudo masks", run.pseudo_masks, key)
        own = CAM if method == "cam" else STAGE2 if method in experiment.STAGE2 else {}
        net, key = partial(run.net, method), partial(run.key, "network", method)
        yield step(f"network of {method}", net, key, own)
        if method in experiment.STAGE1:
            watch = partial(on_val, run, run.preset_of(method), run.net(method))
            yield step("watched", watch, run._watched_key, CAM if method == "cam" else {})
        counts = partial(run._count, method, "test")
        yield step(f"counts of {method}", counts, partial(run.key, "counts", method), own)
    if not bankless:
        counts, key = run._count, partial(run.key, "counts", "nearest_prototype")
        yield step("counts of the nearest", partial(counts, "nearest_prototype", "test"), key)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asks frames for qualified names")
def test_each_step_reads_the_fields_that_its_key_holds_and_no_others(place, monkeypatch):
    read, declared = {}, {}
    for name, settings in SHORT_LIST.items():
        p = replace(TINY, **settings)
        p = Recorder(**{field: getattr(p, field) for field in FIELDS})
        run = open_run(place, p, name, cache=place / f"cache of {name}")
        for step, was_read, own, all_held in made_and_declared(run, monkeypatch):
            # which encoder, and how its maps are pooled, stand in the key of features as words
            held = all_held | ({"encoder", "look"} if step in ("features", "bank") else set())
            assert was_read <= held, f"{name}, {step} reads {was_read - held}"
            read[step] = read.get(step, set()) | was_read
            declared[step] = declared.get(step, set()) | own
    # maps of the masks' own size are not enlarged, and all of these patches have one size
    sized = {step: {"align_corners"} if step.startswith("counts") else set() for step in declared}
    unread = {step: declared[step] - read[step] - sized[step] for step in declared}
    assert {step: sorted(left) for step, left in unread.items() if left} == {}


def test_every_field_is_declared_somewhere_or_stands_outside_the_keys():
    said = set().union(*READS.values())
    elsewhere = {"cam_levels", "cam_fusion", "fusion", "tta", "pseudo_tta", "stage2_tta"}
    elsewhere |= {"matching_after"}
    # data: in the fingerprints; protocols: read when counts become scores; the name is a name; of
    # prompts the key has the words
    outside = {"patches", "image_labels", "ignore", "name", "prompts"}
    outside |= {field for field in FIELDS if field.startswith("drawn_")}
    assert FIELDS - said - elsewhere == outside and set(MATCHING) <= said


# Shared, in any order, twice


def test_features_are_stored_once_for_all_runs_that_share_a_cache(place, steps):
    cache = place / "shared"
    runs = [
        open_run(place, replace(TINY, **settings), f"run {i}", cache=cache)
        for i, settings in enumerate(({}, {"beta": 0.3}, {"K": 3}, {"backbone": "resnet18"}))
    ]
    for run in runs:
        _ = run.bank
        assert np.array_equal(run.features(), runs[0].features())
        assert len(list(cache.glob("features-*.npz"))) == 1
    assert steps == ["features of train", *["bank"] * len(runs)]
    # masked images compare whole pictures, another reading size is another feature, another split
    _ = runs[0].masked_images.bank
    _ = open_run(place, replace(TINY, encoder_size=32), "run 5", cache=cache).bank
    runs[0].features("test")
    assert len(list(cache.glob("features-*.npz"))) == 4


def test_the_encoder_that_clusters_is_embedded_once_whatever_the_other_is(place, steps):
    cache = place / "shared"
    for encoder in ("swin_test", "lite0"):
        p = replace(TINY, encoder=encoder, cluster_encoder="lite0")
        _ = open_run(place, p, encoder, cache=cache).bank
    assert len(list(cache.glob("features-*.npz"))) == 2  # one of each


ASK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_stale as t
for _ in range(2):  # trained, then loaded
    run = t.open_run(Path(sys.argv[2]), folder="script")
    print(repr(run.scores("pbip_stage1")), t.fingerprint(run.net("pbip_stage1")))
"""


def fingerprint(net: torch.nn.Module) -> list[float]:
    return [value.double().sum().item() for value in net.state_dict().values()]


def test_the_same_preset_data_and_seed_give_the_same_numbers_in_any_order(place, steps):
    first = open_run(place)
    wanted, nets = score(first), {m: first.net(m) for m in METHODS if m != "nearest_prototype"}
    banked = open_run(place, folder="banked", cache=place / "other")
    _ = banked.bank  # built here, loaded by the next
    orders = {"banked": METHODS[::-1], "anew": ("full_supervision", "cam", *METHODS[1:6])}
    for folder, order in orders.items():
        torch.manual_seed(len(folder))
        torch.rand(5)
        np.random.seed(len(folder))
        run = open_run(place, folder=folder, cache=place / "other")
        assert {m: run.scores(m) for m in order} == wanted
        assert all(same(run.net(m), net) for m, net in nets.items())
    # once in each folder, and once for the method that is a run of its own in it
    assert steps.count("bank") == 4


def test_a_script_gives_the_same_numbers_twice(place):
    run = open_run(place)
    wanted = f"{run.scores('pbip_stage1')!r} {fingerprint(run.net('pbip_stage1'))}"
    ask = [sys.executable, "-c", ASK, str(Path(__file__).parent), str(place)]
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    found = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=300, env=env)
    assert found.stdout.splitlines() == [wanted, wanted]


def test_a_training_that_was_stopped_ends_as_one_that_was_not(place):
    p, stop = replace(TINY, epochs=2), KeyboardInterrupt

    def after_one_epoch(history):
        raise stop

    whole, cut = (open_run(place, p, folder) for folder in ("whole", "cut"))
    with pytest.raises(stop):
        cut.net("pbip_stage1", after_one_epoch)
    torch.rand(3)
    again = open_run(place, p, "cut")
    assert len(again.history("pbip_stage1")) == 2
    assert same(again.net("pbip_stage1"), whole.net("pbip_stage1"))
    assert again.scores("pbip_stage1") == whole.scores("pbip_stage1")


def test_another_seed_gives_another_network_of_the_same_patches(place, steps):
    one, two = open_run(place), open_run(place, folder="two", seed=1)
    assert two.data("train").fingerprint == one.data("train").fingerprint
    assert not same(two.net("cam"), one.net("cam")) and two.key("bank") != one.key("bank")
    assert two.key("features") == one.key("features")  # nothing is drawn there
