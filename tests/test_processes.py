"""Several processes of a run: what each does, and that together they make what one makes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from protolib import processes
from protolib.__main__ import main
from protolib.experiment import Run
from protolib.matching import matching_loss
from protolib.presets import PRESETS
from protolib.segmentation import segmentation_loss

# three steps of stage 1 and of stage 2, at the paper's learning rate: AdamW's first steps are the
# gradient's signs, and at quick's 1e-3 they make 1e-4 of a rounding within three steps
TINY = replace(
    PRESETS["smoke"], patches=(48, 40, 40), epochs=1, stage2_epochs=1, lr=1e-5, stage2_lr=1e-5
)


def as_one_of(monkeypatch, rank: int, n: int) -> None:
    monkeypatch.setattr(processes, "count", lambda: n)
    monkeypatch.setattr(processes, "rank", lambda: rank)


def test_a_batch_is_shared_row_by_row(monkeypatch):
    batch = {"image": torch.arange(6)[:, None], "index": torch.arange(6), "name": "a"}
    assert processes.share(batch) is batch
    as_one_of(monkeypatch, 1, 3)
    found = processes.share(batch)
    assert found["index"].tolist() == [1, 4] and found["image"].shape == (2, 1)
    assert found["name"] == "a"
    as_one_of(monkeypatch, 0, 4)
    with pytest.raises(ValueError, match="6 patches of a batch cannot be shared by 4 processes"):
        processes.share(batch)


def test_predictions_are_shared_in_whole_batches(monkeypatch):
    shares = []
    for rank in range(3):
        as_one_of(monkeypatch, rank, 3)
        shares.append(processes.own_rows(range(10, 20), 2))
    assert shares == [[10, 11, 16, 17], [12, 13, 18, 19], [14, 15]]


def test_rows_come_back_in_their_order(monkeypatch):
    parts = [(np.array([[0.0], [1], [4]]), [0, 1, 4]), (np.array([[2.0], [3]]), [2, 3]), (None, [])]
    monkeypatch.setattr(processes, "gathered", lambda own: parts)
    assert processes.in_order(*parts[0]).tolist() == [[0], [1], [2], [3], [4]]


def test_alone_nothing_is_weighted():
    assert processes.weight(3, torch.zeros(1)) == 1.0
    losses = {"loss": torch.tensor(2.0)}
    assert processes.mean(losses) is losses
    assert processes.join("cuda:1") == "cuda:1"  # nobody has started others


def test_the_number_that_is_asked_for(monkeypatch, tmp_path):
    assert processes.asked() == 1
    monkeypatch.setenv(processes.ASKED, "2")
    run = Run(TINY, run_dir=tmp_path, device="cpu")
    assert run.processes == 2 and run.variant(TINY, tmp_path).processes == 2
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv(processes.ASKED, wrong)
        with pytest.raises(ValueError, match=f"PROTOLIB_PROCESSES is '{wrong}'; give the number"):
            processes.asked()


def test_the_command_starts_them_itself(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run"]) == 2
    assert capsys.readouterr().err == (
        "protolib: several processes were started, by torchrun or accelerate launch; start one, "
        "and say how many shall train: python -m protolib run --processes 2\n"
    )


def test_what_cannot_be_shared_is_refused_before_work(tmp_path):
    p = replace(TINY, **{f: getattr(PRESETS["released_code"], f) for f in ("pooling", "look")})
    run = Run(p, run_dir=tmp_path, device="cpu")
    run.processes = 2
    with pytest.raises(ValueError, match="one matching loss for the whole batch"):
        run.net("pbip_stage1")
    assert not (tmp_path / "pbip_stage1").exists() and not (tmp_path / "bank").exists()
    run = Run(TINY, run_dir=tmp_path, device="cpu")
    run.processes, run.device = 2, "mps"
    with pytest.raises(ValueError, match="here is room for 1 on mps"):
        run.net("cam")


def _gradients(folder) -> None:
    """Losses whose terms are unevenly spread over the rows of a batch, and their gradients."""
    processes.join("cpu")
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(8, 4, generator=generator) < torch.linspace(0.2, 0.9, 8)[:, None]).float()
    batch = {
        "image": torch.rand(8, 3, 12, 12, generator=generator),
        "label": labels,
        "mask": torch.randint(5, (8, 12, 12), generator=generator),
        "seen": torch.rand(8, 6, 4, 4, generator=generator),
    }
    batch["mask"][::2, 3:] = 4  # ignored: most of what the first process is to judge
    prototypes = F.normalize(torch.randn(8, 6, generator=generator), dim=1)
    torch.manual_seed(0)
    own, p, left = processes.share(batch), replace(PRESETS["quick"], K=2), {}
    net = nn.Conv2d(3, 4, 3, padding=1)

    def unit(x):
        return F.normalize(x, dim=1)

    def matching(look):
        chosen = replace(p, look=look)
        return matching_loss(
            [own["seen"]], net(own["image"]), own["label"], prototypes, unit, chosen
        )

    for name, loss in (
        ("pooling", lambda: matching("masked_pooling")),
        ("positions", lambda: matching("positions")),
        ("segmentation", lambda: segmentation_loss(net, own)["loss"]),
    ):
        net.zero_grad()
        value = loss()
        value.backward()
        processes.average_gradients(net)
        mean = processes.mean({"loss": value.detach()})["loss"].float()
        left[name] = torch.cat([mean.view(1), net.weight.grad.flatten(), net.bias.grad])
    if processes.rank() == 0:
        torch.save(left, folder / f"{processes.count()}.pt")


gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")


@pytest.mark.slow
@gloo
@pytest.mark.parametrize("n", [2, 4])
def test_the_gradient_of_all_is_that_of_one(tmp_path, n):
    _gradients(tmp_path)
    processes.start(n, _gradients, tmp_path)
    one, all_ = (torch.load(tmp_path / f"{k}.pt", weights_only=True) for k in (1, n))
    for name, wanted in one.items():
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(all_[name], wanted, rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
@gloo
@pytest.mark.usefixtures("drawn_once")
def test_two_processes_make_what_one_makes(tmp_path):
    one, two = (Run(TINY, run_dir=tmp_path / name, device="cpu") for name in ("one", "two"))
    two.processes = 2
    called = []
    two.net("pbip_stage1", called.append)
    counts = [run.counts("pbip_stage2") for run in (two, one)]  # stage 1, masks, stage 2, test
    assert np.array_equal(one.features(), two.features())
    assert np.array_equal(one.bank.prototypes, two.bank.prototypes)
    for method in ("pbip_stage1", "pbip_stage2"):
        a, b = one.history(method), two.history(method)
        # an epoch of AdamW: it divides a gradient by its own size, and makes a step of the full
        # rate of what is 0 but for rounding
        assert np.abs(a["loss"] - b["loss"]).max() < 1e-4
        assert one.key("counts", method, "test") == two.key("counts", method, "test")
    assert len(called) == 1 and called[0].equals(two.history("pbip_stage1"))
    masks = [sorted(f.name for f in (r.folder / "pseudo_masks").iterdir()) for r in (one, two)]
    assert masks[0] == masks[1] and len(masks[0]) == 48 + 1
    assert counts[0].keys() == counts[1].keys()
    matrices = [
        sum(np.array(slide["none"]["dropped"].matrix) for slide in of.values()) for of in counts
    ]
    # every pixel once; weights that differ in the sixth digit turn few of them
    assert matrices[0].sum() == matrices[1].sum() == 40 * 64 * 64
    assert np.abs(matrices[0] - matrices[1]).sum() < 0.01 * matrices[0].sum()
