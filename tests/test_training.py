"""The training loop: poses, learning rate, steps by hand, resume, another key, a non-finite loss,
two processes."""

import math
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from protolib import processes, training
from protolib.data.phantom import STAINS
from protolib.losses import cam_loss
from protolib.presets import PRESETS, Preset
from protolib.training import Place, fit, poly_lr, seed_of

P = replace(PRESETS["quick"], epochs=3, batch=4, lr=0.01, weight_decay=0.1)


class Squares(Dataset):
    """Ten noisy patches of 6 x 6 px, each with a label and a mask that holds its red channel."""

    def __init__(self, constant: bool = False):
        pixels = torch.randint(256, (10, 3, 6, 6), generator=torch.Generator().manual_seed(0))
        self.images = (pixels[..., :1, :1].expand_as(pixels) if constant else pixels).to(
            torch.uint8
        )
        self.ids = [f"patch {i}" for i in range(10)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        image = self.images[i]
        return {
            "image": image,
            "label": torch.tensor([i % 2, i // 2 % 2]).float(),
            "index": i,
            "mask": image[0].long(),
        }


class Tiny(nn.Module):
    """A convolution, batch statistics and dropout: what a resumed run must restore and draw
    again."""

    def __init__(self, seed: int = 0, dropout: float = 0.3):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.norm(self.conv(images)).relu().mean((2, 3))))  # (B, 2)


def tiny_loss(net: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    loss = nn.functional.binary_cross_entropy_with_logits(net(batch["image"]), batch["label"])
    return {"loss": loss, "half": loss / 2}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def losses(history: pd.DataFrame) -> list:
    return history.drop(columns="seconds").to_numpy().tolist()


def trained(
    folder, net=None, p: Preset = P, key: str = "a", seed: int = 5, **more
) -> tuple[nn.Module, pd.DataFrame]:
    net = net or Tiny()
    return net, fit(net, Squares(), tiny_loss, p, Place(folder, key, seed), **more)


def test_dihedral_is_numpys_flip_and_rot90():
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 5, 5))
    found = training.dihedral(torch.from_numpy(images), torch.arange(8)).numpy()
    for pose in range(8):
        flipped = np.flip(images[pose], 2) if pose >= 4 else images[pose]
        assert np.array_equal(found[pose], np.rot90(flipped, pose % 4, (1, 2)))
    one = torch.arange(4).view(1, 2, 2).repeat(8, 1, 1)
    assert len({tuple(m.flatten().tolist()) for m in training.dihedral(one, torch.arange(8))}) == 8


def test_image_and_mask_turn_together():
    patches = Squares()
    batch = torch.utils.data.default_collate([patches[i] for i in range(10)] * 8)
    turned = training.augment(batch, torch.Generator().manual_seed(0))
    assert turned["image"].dtype == torch.float32 and turned["mask"].dtype == torch.int64
    assert torch.equal((turned["image"][:, 0] * 255).round().long(), turned["mask"])
    poses = training.dihedral(patches.images[0][0].repeat(8, 1, 1), torch.arange(8)).long()
    seen = {int((poses == m).all((1, 2)).nonzero()) for m in turned["mask"][::10]}
    assert len(seen) > 3  # eight draws of the first patch: not all in one pose
    assert torch.equal(turned["label"], batch["label"]) and torch.equal(
        turned["index"], batch["index"]
    )
    assert batch["image"].dtype == torch.uint8 and torch.equal(
        batch["image"][0], patches.images[0]
    )  # left as it was


def test_stains_stray_by_scale_and_shift_and_what_is_neither_stays():
    """One pixel a patch, by hand: amounts of both stains, and a rest across them."""
    stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    rest = np.cross(*stains) / np.linalg.norm(np.cross(*stains))
    amounts, more = np.array([[0.5, 0.3], [0.2, 0.6]]), np.array([0.02, 0.05])
    density = amounts @ stains + more[:, None] * rest  # (2, 3)
    images = torch.from_numpy(10**-density).float()[:, :, None, None]
    found = training.restained(images, 0.1, torch.Generator().manual_seed(3))
    draws = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(3)).numpy() * 2 - 1
    scale, shift = 1 + 0.1 * draws[0], 0.1 * draws[1]
    wanted = 10 ** -((scale * amounts + shift) @ stains + more[:, None] * rest)
    np.testing.assert_allclose(found[:, :, 0, 0].numpy(), wanted, rtol=1e-5)
    assert len(np.unique(draws.round(6))) == 8  # each patch and stain has draws of its own


def test_stains_stay_in_range_and_without_jitter_as_they_are():
    images = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1  # black, white
    generator = torch.Generator().manual_seed(1)
    same = training.restained(images, 0.0, generator)
    np.testing.assert_allclose(same, images.clamp(min=1 / 255), rtol=1e-5, atol=1e-6)
    strong = training.restained(images, 1.0, generator)
    assert 0 <= strong.min() and strong.max() <= 1 and strong.isfinite().all()
    assert (strong - images).abs().max() > 0.2


def test_jitter_draws_from_its_own_seed_and_leaves_the_poses_alone(tmp_path, monkeypatch):
    seen, dihedral = [], training.dihedral

    def noted(images, which):
        seen.append(which.tolist())
        return dihedral(images, which)

    monkeypatch.setattr(training, "dihedral", noted)
    (plain, a), poses = trained(tmp_path / "plain"), seen[:]
    (off, b), (on, c), (again, d) = (
        trained(tmp_path / name, p=replace(P, stain_jitter=jitter))
        for name, jitter in (("off", 0.0), ("on", 0.2), ("again", 0.2))
    )
    assert seen == 4 * poses
    assert same_weights(plain, off) and losses(a) == losses(b)
    assert same_weights(on, again) and losses(c) == losses(d)
    assert not same_weights(plain, on)


def test_poly_lr_falls_on_a_straight_line():
    p = replace(P, lr=0.8)
    found = [poly_lr(i, 4, p) for i in range(4)]
    assert found == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=1e-15)


def test_poly_lr_warms_up_and_stays_past_its_end():
    p = replace(P, epochs=4, lr=0.8, lr_power=2, warmup=2, warmup_ratio=0.1)
    rates = [poly_lr(i, 8, p) for i in range(10)]  # two steps an epoch, so four of warm-up
    # from a tenth, a quarter of the way each step
    risen = [0.8 * share for share in (0.1, 0.325, 0.55, 0.775)]
    fallen = [0.8 * (1 - k / 8) ** 2 for k in (0, 1, 2, 3, 3, 3)]
    assert rates == pytest.approx(risen + fallen, abs=1e-15)


def test_every_epoch_of_every_seed_and_every_purpose_has_its_own_seed():
    purposes = [("epoch", e) for e in range(20)] + [
        ("poses", e, rank) for e in range(20) for rank in (0, 1)
    ]
    purposes += [("weights of stage 1",), ("weights of stage 2",), ("learned prototypes",)]
    seeds = {seed_of(seed, *purpose) for seed in range(20) for purpose in purposes}
    assert len(seeds) == 20 * len(purposes) and 0 <= min(seeds) and max(seeds) < 2**31
    assert seed_of(1, "epoch", 12) != seed_of(1, "epoch1", 2)  # the words do not run together
    # the first 31 bits of the hash, the same on every machine
    assert seed_of(0, "epoch", 0) == int(sha256(b"0/epoch/0").hexdigest()[:8], 16) // 2


def test_steps_are_adamw_under_the_falling_learning_rate(tmp_path):
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.5)
    lr, decay, b1, b2 = 0.1, 0.2, 0.9, 0.999
    p = replace(P, epochs=2, batch=5, lr=lr, weight_decay=decay)

    def loss(net, batch):
        return {"loss": 3 * net(torch.ones(1, 1)).sum()}

    fit(net, Squares(), loss, p, Place(tmp_path, "", 0))
    w, m, v = 0.5, 0.0, 0.0
    for step in range(4):  # two epochs of two batches; the gradient is 3 at every step
        rate = lr * (1 - step / 4)
        m, v = b1 * m + (1 - b1) * 3, b2 * v + (1 - b2) * 9
        w -= rate * decay * w
        w -= rate * (m / (1 - b1 ** (step + 1))) / (math.sqrt(v / (1 - b2 ** (step + 1))) + 1e-8)
    assert net.weight.item() == pytest.approx(w, abs=1e-6)


def test_what_is_watched_stands_in_the_history_and_steers_nothing(tmp_path):
    seen = []

    def watch(net):
        net.eval()  # as a prediction does: the next epoch must train again
        seen.append(net.conv.weight.detach().clone())
        torch.rand(3)  # draws of its own
        return {"IoU A": len(seen) / 4}

    watched, history = trained(tmp_path / "a", watch=watch)
    plain, bare = trained(tmp_path / "b")
    assert history["IoU A"].tolist() == [0.25, 0.5, 0.75] and losses(
        history.drop(columns="IoU A")
    ) == losses(bare)
    assert same_weights(watched, plain) and torch.equal(seen[-1], plain.conv.weight)
    assert pd.read_csv(tmp_path / "a" / "history.csv")["IoU A"].tolist() == [0.25, 0.5, 0.75]


def test_history_holds_the_mean_of_each_loss(tmp_path):
    seen = []

    def loss(net, batch):
        seen.append(batch["index"].float().mean())
        return {"loss": net(batch["image"]).sum() * 0 + seen[-1], "index": seen[-1]}

    calls = []
    p, place = replace(P, epochs=2), Place(tmp_path, "a", 5)
    history = fit(Tiny(), Squares(), loss, p, place, on_epoch=calls.append)
    # ten patches in batches of four: the last two are dropped, two batches in each epoch
    assert len(seen) == 4
    assert history["epoch"].tolist() == [1, 2]
    assert history["index"].tolist() == pytest.approx(
        [float(sum(seen[:2])) / 2, float(sum(seen[2:])) / 2]
    )
    assert history["loss"].tolist() == pytest.approx(history["index"].tolist())
    assert [len(c) for c in calls] == [1, 2] and calls[1].equals(history)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    (a, first), (b, second), (c, _) = (
        trained(tmp_path / "a"),
        trained(tmp_path / "b"),
        trained(tmp_path / "c", seed=6),
    )
    assert same_weights(a, b) and losses(first) == losses(second)
    assert not same_weights(a, c)


def test_every_epoch_draws_poses_of_its_own(tmp_path, monkeypatch):
    drawn, dihedral, seeds, seed = [], training.dihedral, [], torch.manual_seed

    def noted(images, which):
        drawn.append(which.tolist())
        return dihedral(images, which)

    monkeypatch.setattr(training, "dihedral", noted)
    net = Tiny()
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
    trained(tmp_path, net)
    # each from its seed, and from no other
    assert seeds == [seed_of(5, "epoch", epoch) for epoch in range(3)]
    for epoch in range(3):
        own = torch.Generator().manual_seed(seed_of(5, "poses", epoch, 0))
        wanted = [torch.randint(8, (4,), generator=own).tolist() for _ in range(2)]
        assert drawn[4 * epoch : 4 * epoch + 4 : 2] == wanted
    # three epochs of two batches, image and mask in the same poses
    assert len(drawn) == 12 and drawn[::2] == drawn[1::2]
    assert len({str(poses) for poses in drawn}) == 6


def test_no_draw_depends_on_what_was_drawn_before(tmp_path):
    torch.manual_seed(1)
    first, history = trained(tmp_path / "a")
    torch.manual_seed(2)
    torch.rand(7)
    np.random.rand(7)
    second, again = trained(tmp_path / "b")
    assert same_weights(first, second) and losses(history) == losses(again)


@pytest.mark.parametrize("stop", ["after the first epoch", "in the second epoch"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stop):
    whole, history = trained(tmp_path / "whole")
    steps = []

    def loss(net, batch):
        steps.append(0)
        if stop == "in the second epoch" and len(steps) == 4:
            raise KeyboardInterrupt
        return tiny_loss(net, batch)

    def on_epoch(history):
        if stop == "after the first epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Tiny(), Squares(), loss, P, Place(tmp_path / "cut", "a", 5), on_epoch=on_epoch)
    epochs = []
    torch.manual_seed(99)  # another process draws from another state
    resumed, again = trained(tmp_path / "cut", net=Tiny(seed=1), on_epoch=epochs.append)
    assert [len(e) for e in epochs] == [2, 3]
    assert same_weights(whole, resumed) and losses(history) == losses(again)


@pytest.fixture
def often(monkeypatch):
    """The state within an epoch is kept after every step but the last."""
    monkeypatch.setattr(training, "PAUSE", -1.0)
    monkeypatch.setattr(training, "LOOK", 1)


LONG = replace(P, batch=2, stain_jitter=0.1, warmup=1, epochs=2)  # five steps an epoch


def stopped(folder, after: int, net=None) -> tuple[nn.Module, pd.DataFrame, list]:
    """A training that is stopped in its step `after`, counted from 1; 0: never. Gives the batches
    that it saw, too."""
    seen = []

    def loss(net, batch):
        seen.append((batch["step"], batch["index"].tolist(), batch["image"].sum().item()))
        if len(seen) == after:
            raise KeyboardInterrupt
        return tiny_loss(net, batch)

    net, place, history = net or Tiny(), Place(folder, "a", 5), pd.DataFrame()
    try:
        history = fit(net, Squares(), loss, LONG, place)
    except KeyboardInterrupt:
        assert after
    return net, history, seen


@pytest.mark.parametrize("after", [2, 5, 6, 7, 10])
def test_an_epoch_that_was_stopped_goes_on_to_the_last_digit(tmp_path, often, after):
    """Order of patches, poses, stains, dropout, statistics, AdamW, rate, losses: all go on."""
    whole, history, steps = stopped(tmp_path / "whole", 0)
    *_, first = stopped(tmp_path / "cut", after)
    torch.manual_seed(99)
    np.random.seed(99)  # another process draws from another state
    resumed, again, rest = stopped(tmp_path / "cut", 0, Tiny(seed=1))
    assert first[:-1] + rest == steps  # no step twice, none left out
    assert same_weights(whole, resumed) and losses(history) == losses(again)
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("whole", "cut")
    ]
    moments = [[v["exp_avg_sq"] for v in s["optimizer"]["state"].values()] for s in states]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == ["checkpoint.pt", "history.csv"]


def test_two_stops_in_one_epoch(tmp_path, often):
    whole, history, steps = stopped(tmp_path / "whole", 0)
    parts = [stopped(tmp_path / "cut", *how)[2] for how in ((7, Tiny()), (2, Tiny(seed=2)))]
    resumed, again, rest = stopped(tmp_path / "cut", 0, Tiny(seed=1))
    assert [*parts[0][:-1], *parts[1][:-1], *rest] == steps
    assert same_weights(whole, resumed) and losses(history) == losses(again)


def test_a_state_within_an_epoch_is_for_its_key_epoch_device_and_processes(
    tmp_path, often, monkeypatch
):
    stopped(tmp_path, 8)  # in the third step of the second epoch
    net, place = Tiny(), Place(tmp_path, "a", 5)
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.scaler = None

    def steps(place=place, epoch=1):
        return training.kept(place, net, optimizer, epoch).steps

    fresh = Tiny()
    assert steps(place._replace(key="b")) == steps(epoch=0) == steps(epoch=2) == 0
    with monkeypatch.context() as patch:
        patch.setattr(processes, "count", lambda: 2)
        assert steps() == 0
    state = torch.load(tmp_path / "epoch.pt", weights_only=True)
    torch.save(state | {"whose": state["whose"] | {"device": "cuda"}}, tmp_path / "epoch.pt")
    assert steps() == 0 and same_weights(net, fresh)
    torch.save(state, tmp_path / "epoch.pt")
    assert steps() == 2 and not same_weights(net, fresh)


def test_a_state_is_written_by_the_clock(tmp_path, monkeypatch):
    """At most once in PAUSE seconds, looked at every LOOK steps, and never in the last one."""
    clock, written = iter(range(0, 10**6, 60)), []
    times = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(training, "time", times)  # a minute a look
    monkeypatch.setattr(training, "LOOK", 1)
    monkeypatch.setattr(training, "keep", lambda *given: written.append(given[-1].steps))
    trained(tmp_path / "a", p=replace(P, batch=1, epochs=2))
    assert written == [6, 6]  # of ten steps each; the epoch's own checkpoint sets the clock anew
    monkeypatch.setattr(training, "LOOK", 4)
    trained(tmp_path / "b", p=replace(P, batch=1, epochs=1))
    assert written == [6, 6]  # looked at twice, two minutes apart
    assert training.PAUSE == 5 * 60


def test_the_clock_is_looked_at_every_16_steps(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(training, "PAUSE", -1.0)
    monkeypatch.setattr(training, "keep", lambda *given: written.append(given[-1].steps))
    p = replace(P, batch=1, epochs=1)
    fit(Tiny(), Twice(), tiny_loss, p, Place(tmp_path, "a", 5))
    assert written == [16]  # of twenty


class Twice(Squares):
    """The ten patches, and once more."""

    def __len__(self) -> int:
        return 2 * len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return super().__getitem__(i % len(self.ids))


def test_the_seconds_of_an_epoch_are_those_of_all_its_parts(tmp_path, often, monkeypatch):
    clock = iter(range(100, 10**6))
    times = SimpleNamespace(monotonic=time.monotonic, perf_counter=lambda: next(clock))
    monkeypatch.setattr(training, "time", times)  # a second a look
    # what is watched takes a second, which is not theirs
    watch = lambda net: {"later": next(clock)}
    net, place = Tiny(), Place(tmp_path / "whole", "a", 5)
    history = fit(net, Squares(), tiny_loss, LONG, place, watch)
    # five steps: looked at in the beginning, after each but the last, and at the end
    assert history["seconds"].tolist() == [5, 5]
    stopped(tmp_path / "cut", 9)  # three steps of the second epoch are kept, after three seconds
    assert torch.load(tmp_path / "cut" / "epoch.pt", weights_only=True)["each"][0]["seconds"] == 3
    # two more: a look after the fourth, and one at the end
    assert stopped(tmp_path / "cut", 0)[1]["seconds"].tolist() == [5, 5]


def test_what_is_kept_of_the_losses_has_no_graph(tmp_path, often):
    stopped(tmp_path, 3)
    (part,) = torch.load(tmp_path / "epoch.pt", weights_only=True)["each"]
    assert part["steps"] == 2 and sorted(part["sums"]) == ["half", "loss"]
    assert not any(total.requires_grad for total in part["sums"].values())


def test_a_short_epoch_writes_nothing_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "keep", lambda *_: pytest.fail("a tiny run must not pay"))
    trained(tmp_path, p=replace(P, batch=1))


@pytest.mark.parametrize("name", ["checkpoint.pt", "epoch.pt"])
@pytest.mark.parametrize("left, why", [(0, "it is empty"), *((n, "[^i].+") for n in (100, -100))])
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(tmp_path, often, name, left, why):
    stopped(tmp_path, 8)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:left])
    said = (
        rf"{name} is cut or damaged \({why}\): delete it, and what was trained into it is trained"
    )
    with pytest.raises(ValueError, match=said):
        stopped(tmp_path, 0)
    assert (tmp_path / name).read_bytes() == whole[:left]
    (tmp_path / name).unlink()
    assert stopped(tmp_path, 0)[1]["epoch"].tolist() == [1, 2]


def test_a_finished_run_is_loaded_and_trained_no_more(tmp_path):
    done, history = trained(tmp_path)
    epochs = []
    loaded, again = trained(tmp_path, net=Tiny(seed=1), on_epoch=epochs.append)
    assert epochs == [] and same_weights(done, loaded) and history.equals(again)


def test_a_checkpoint_of_another_key_is_not_continued(tmp_path):
    fresh, _ = trained(tmp_path / "fresh", key="b")
    trained(tmp_path / "used", net=Tiny(seed=1), p=replace(P, epochs=1), key="a")
    other, history = trained(tmp_path / "used", key="b")
    assert history["epoch"].tolist() == [1, 2, 3] and same_weights(fresh, other)


def test_a_checkpoint_that_is_more_than_numbers_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"
    torch.save({"key": "a", "history": Touch(ran)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt is cut or damaged \(Weights only load"):
        training.finished(Place(tmp_path, "a", 5), P)
    assert not ran.exists()


class Touch:
    """What makes a file of this name where it is unpickled without care."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return type(self.file).touch, (self.file,)


def test_a_training_is_finished_with_all_epochs_of_its_key(tmp_path, monkeypatch):
    asked, load = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda file, **words: asked.append(words) or load(file, **words)
    )
    place = Place(tmp_path, "a", 5)
    assert not training.finished(place, P) and asked == []
    trained(tmp_path)
    found = [training.finished(place, replace(P, epochs=epochs)) for epochs in (2, 3, 4)]
    assert found == [True, True, False]
    assert not training.finished(place._replace(key="b"), P)
    # its key and history alone are read, of what may be a gigabyte
    mapped = dict(map_location="cpu", weights_only=True, mmap=True)
    assert asked == 4 * [mapped]
    asked.clear()
    # what is continued is not: the file is written anew under it
    training.resume(place, Tiny())
    assert asked == [mapped | {"mmap": False}]


def test_a_loss_that_is_no_number_stops_names_and_keeps_its_batch(tmp_path):
    def loss(net, batch):
        value = tiny_loss(net, batch)["loss"]
        return {"loss": value * torch.where((batch["index"] == 7).any(), torch.nan, 1.0)}

    net = Tiny()
    with pytest.raises(
        FloatingPointError, match="loss is nan .*patch .*lower the learning rate"
    ) as error:
        fit(net, Squares(), loss, replace(P, batch=2), Place(tmp_path, "a", 5))
    assert "patch 7" in str(error.value)
    kept = torch.load(tmp_path / "non_finite_batch.pt", weights_only=True)
    assert 7 in kept["index"] and torch.equal(kept["image"], Squares().images[kept["index"]])
    assert all(p.isfinite().all() for p in net.parameters())  # stopped before the step
    assert not (tmp_path / "checkpoint.pt").exists()


class Linear(nn.Module):
    """A classifier with the methods that losses.cam_loss asks of ClassNet; a colour looks the
    same in every pose."""

    def __init__(self):
        super().__init__()
        self.prototypes, self.head = None, nn.Conv2d(3, 2, 1)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.head(images)]

    def logits(self, maps: list[torch.Tensor], merge: str) -> torch.Tensor:
        return torch.stack([m.mean((2, 3)) for m in maps])


class Spare(nn.Module):
    """A classifier with batch statistics, and with weights that no loss reaches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)  # the same in every process, as a run sees to
        self.tiny, self.spare = Tiny(dropout=0), nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tiny(images)


SHARED = replace(P, batch=4, epochs=2)  # ten patches: two batches an epoch


def _train_shared(folder, p: Preset = SHARED, die_in: int = -1) -> None:
    """Trainings of one process, or of one of several."""
    seen = []

    def loss(net, batch):
        seen.append(batch["index"].tolist())
        if len(seen) - 1 == die_in and processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return cam_loss(net, batch, PRESETS["quick"])

    name = f"{processes.count()} processes"
    plain = Linear()
    fit(plain, Squares(constant=True), loss, p, Place(folder / name / "plain", "a", 5))
    norm = Spare()
    fit(norm, Squares(), tiny_loss, p, Place(folder / name / "norm", "a", 5))
    left = {"plain": plain.state_dict(), "norm": norm.state_dict(), "seen": seen}
    torch.save(left, folder / name / f"rank{processes.rank()}.pt")


def _join_and(work, *given) -> None:
    processes.join("cpu")
    training.PAUSE, training.LOOK = -1.0, 1  # the state is kept after every step
    work(*given)


gloo = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo: no processes on a CPU",
)


@pytest.mark.slow
@gloo
def test_two_processes_compute_what_one_does(tmp_path):
    _train_shared(tmp_path)
    processes.start(2, _join_and, _train_shared, tmp_path)
    alone = torch.load(tmp_path / "1 processes" / "rank0.pt", weights_only=True)
    first, second = (
        torch.load(tmp_path / "2 processes" / f"rank{r}.pt", weights_only=True) for r in (0, 1)
    )
    # each batch is that of one process, shared row by row
    assert [[*a, *b] for a, b in zip(first["seen"], second["seen"], strict=True)] == [
        [*whole[::2], *whole[1::2]] for whole in alone["seen"]
    ]
    for name in ("plain", "norm"):
        for weight, value in alone[name].items():
            assert torch.equal(first[name][weight], second[name][weight])
            if weight in ("tiny.conv.bias", "tiny.norm.running_mean"):
                continue  # a bias before a norm changes nothing: its gradient is rounding alone
            torch.testing.assert_close(first[name][weight], value, rtol=0, atol=1e-5)
        one, two = (pd.read_csv(tmp_path / f"{n} processes" / name / "history.csv") for n in (1, 2))
        assert np.abs(one["loss"] - two["loss"]).max() < 1e-5
    # no loss reached them, so no decay did
    assert torch.equal(first["norm"]["spare.weight"], alone["norm"]["spare.weight"])
    assert first["norm"]["tiny.norm.num_batches_tracked"] == 4


@pytest.mark.slow
@gloo
def test_a_killed_process_ends_the_job_and_the_training_goes_on(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"^process 2 of 2 was ended \(SIGKILL\), and the others"
    ):
        processes.start(2, _join_and, _train_shared, tmp_path / "cut", SHARED, 3)
    place = tmp_path / "cut" / "2 processes" / "plain"
    assert len(pd.read_csv(place / "history.csv")) == 1  # it was in the second epoch
    assert (place / "epoch.pt").exists()  # and in its second step
    processes.start(2, _join_and, _train_shared, tmp_path / "cut")
    processes.start(2, _join_and, _train_shared, tmp_path / "whole")
    cut, whole = (
        torch.load(tmp_path / name / "2 processes" / "rank0.pt", weights_only=True)
        for name in ("cut", "whole")
    )
    assert cut["seen"] == whole["seen"][3:]  # from its second step on
    assert all(torch.equal(cut["plain"][k], v) for k, v in whole["plain"].items())


@pytest.mark.slow
@gloo
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    odd = replace(SHARED, batch=5)
    said = "process . of 2 failed: ValueError: 5 patches of a batch cannot be shared by 2 processes"
    with pytest.raises(RuntimeError, match=said):
        processes.start(2, _join_and, _train_shared, tmp_path, odd)


def test_another_process_than_the_first_draws_its_own_and_writes_nothing(
    tmp_path, often, monkeypatch
):
    seeds, seed = [], torch.manual_seed
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
    trained(tmp_path, p=LONG)
    own = [seed_of(5, "epoch", epoch, 1) for epoch in range(LONG.epochs)]
    assert [number for number in seeds if number in own] == own
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_gpu_is_set_up_by_the_precision_of_the_preset(monkeypatch):
    said = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", said.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    training.set_up("cuda", replace(P, precision="tf32"))
    training.set_up("cuda", replace(P, precision="bfloat16"))
    training.set_up("mps", P)
    assert said == [False, "high", False, "highest"]


def test_the_draws_of_a_device_and_the_scale_of_its_gradients_are_kept_too():
    own = torch.Generator()
    host = [(torch.get_rng_state, torch.set_rng_state), (own.get_state, own.set_state)]
    assert training._sources("cpu", own) == host
    cuda = (torch.cuda.get_rng_state, torch.cuda.set_rng_state)
    assert training._sources("cuda", own) == [*host, cuda]
    loaded = []
    scaler = SimpleNamespace(load_state_dict=loaded.append)
    optimizer = SimpleNamespace(load_state_dict=loaded.append, scaler=scaler)
    training._load({"net": {}, "optimizer": "moments", "scaler": "scale"}, nn.ReLU(), optimizer)
    assert loaded == ["moments", "scale"]


def test_a_gpu_takes_one_kernel_a_step_and_four_processes_that_decode(tmp_path, monkeypatch):
    """None is here: noted is what would be asked of it."""
    noted = {}

    class Stop(Exception):
        pass

    def feed(patches, batch, **words):
        noted["feed"] = words
        raise Stop

    for device, gpu in (("cpu", False), ("cuda", True)):
        with monkeypatch.context() as patch:
            weights = SimpleNamespace(requires_grad=True, device=torch.device(device))
            fixed = SimpleNamespace(requires_grad=False, device=torch.device("meta"))
            net = SimpleNamespace(parameters=lambda all=(weights, fixed): iter(all))
            adamw = lambda trained, **words: noted.update(trained=trained, adamw=words)
            patch.setattr(torch.optim, "AdamW", adamw)
            patch.setattr(training, "Accelerator", lambda **words: noted.update(accelerator=words))
            patch.setattr(training, "DataLoader", feed)
            with pytest.raises(Stop):
                fit(
                    net,
                    Squares(),
                    tiny_loss,
                    replace(P, precision="bfloat16"),
                    Place(tmp_path, "", 0),
                )
        assert noted["trained"] == [weights]
        assert noted["adamw"] == dict(lr=0.01, weight_decay=0.1, fused=gpu)
        assert noted["accelerator"] == dict(cpu=not gpu, mixed_precision="bf16")
        decode = dict(num_workers=4 if gpu else 0, pin_memory=gpu)
        assert noted["feed"] == dict(shuffle=True, drop_last=True) | decode


def test_what_several_processes_share_is_asked_for_in_its_place(tmp_path, often, monkeypatch):
    """One process has nobody to wait for: here the calls are noted, and what is there by then."""
    said, state = [], tmp_path / "epoch.pt"
    net = Tiny()

    def gradients(of):
        assert of is net
        said.append("gradients" if net.conv.weight.grad.any() else "none")

    class Noted(training.Accelerator):
        def prepare_model(self, model, **words):
            said.append(words)  # accelerate's own sharing would average twice
            return super().prepare_model(model, **words)

    monkeypatch.setattr(training, "Accelerator", Noted)
    monkeypatch.setattr(processes, "share_statistics", lambda of: said.append(of is net))
    monkeypatch.setattr(processes, "wait", lambda: said.append(state.exists()))
    monkeypatch.setattr(processes, "average_gradients", gradients)
    monkeypatch.setattr(processes, "mean", lambda sums: {k: 10 * v for k, v in sums.items()})
    history = trained(tmp_path, net, replace(P, epochs=1, batch=3))[1]
    # statistics, wait for all to read; of three steps the last one's state is the epoch's own
    step = ["gradients", True]
    assert said == [{"evaluation_mode": True}, True, False, *step, *step, "gradients"]
    monkeypatch.undo()
    plain = trained(tmp_path / "plain", None, replace(P, epochs=1, batch=3))[1]
    assert history["loss"].item() == pytest.approx(10 * plain["loss"].item(), rel=1e-6)


def test_the_device_alone_chooses_how_memory_is_kept(monkeypatch):
    """By the numbers of glibc's malloc.h."""
    said, libc = [], SimpleNamespace(mallopt=lambda *given: said.append(given))
    monkeypatch.setattr(training.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(training.sys, "platform", "linux")
    training.set_up("mps", P)
    assert said == []
    training.set_up("cpu", P)
    assert said == [(-3, 2**30), (-1, 2**31 - 1)]
    monkeypatch.setattr(training.sys, "platform", "darwin")
    training.set_up("cpu", P)
    assert len(said) == 2
    monkeypatch.setattr(training.sys, "platform", "linux")
    del libc.mallopt  # musl has none
    training.set_up("cpu", P)


def test_at_its_end_a_network_is_one_that_predicts(tmp_path):
    assert not trained(tmp_path)[0].training


def test_a_batch_that_is_no_number_is_named_by_four_patches(tmp_path):
    patches = SimpleNamespace(ids=list("abcdefg"))
    batch = {"index": torch.tensor([6, 0, 2, 1, 3])}
    with pytest.raises(FloatingPointError, match="begins with g, a, c, b; it is kept"):
        training.guard(torch.tensor(math.inf), batch, patches, tmp_path)
    assert training.guard(torch.tensor(1.0), batch, patches, tmp_path) is None


def test_the_bar_says_which_epoch_and_how_the_last_one_was(tmp_path, often, monkeypatch):
    asked, said, progress = [], [], training.progress

    class Bar:
        set_description = lambda self, *given, **words: said.append((*given, words))
        set_postfix = lambda self, **words: said.append(words)
        update = lambda self: said.append("step")
        close = lambda self: said.append("closed")

    monkeypatch.setattr(training, "progress", lambda *given: asked.append(given) or Bar())
    stopped(tmp_path, 9)
    said.clear()
    history = stopped(tmp_path, 0)[1]  # after eight of ten steps
    assert asked == [(10, 0, True), (10, 8, True)]
    loss = f"{history['loss'][1]:.3f}"
    last = {"loss": loss, "refresh": False}
    assert said == [("epoch 2/2", {"refresh": False}), "step", "step", last, "closed"]
    bar = progress(6, 2, True)
    assert (bar.total, bar.n, bar.leave, bar.mininterval) == (6, 2, False, 1)
    assert not bar.disable
    bar.close()
    assert progress(6, 6, True).disable and progress(6, 2, False).disable


def test_the_bar_speaks_once_a_second(tmp_path, monkeypatch):
    spoken = []

    class Bar(training.tqdm):
        def display(self, *args, **kwargs):
            spoken.append(self.n)
            return super().display(*args, **kwargs)

    monkeypatch.setattr(training, "tqdm", Bar)
    trained(tmp_path)  # six steps in far less than a second
    # at the start and at the end: a notebook's client that reads late keeps 1000 messages, and
    # nbval reads late
    assert spoken == [0, 6]
    trained(tmp_path)  # all is loaded: nothing to say
    assert spoken == [0, 6]


@pytest.mark.skipif(
    sys.platform != "linux", reason="how glibc returns memory is set on Linux alone"
)
def test_memory_of_a_step_is_there_for_the_next_one():
    training.set_up("cpu", P)
    faults = []
    for _ in range(8):
        began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(16_000_000).fill_(1)  # 64 MB, freed at once
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
    # 15,625 pages of 4 KiB each time, had they been given back; what is small and comes between may
    # sit in the place that was freed, and the next one asks for another
    assert min(faults) < 1000
