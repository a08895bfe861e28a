"""Benchmarks: the naive side computes what the kernels do, ratios are those of a round, and the
table is made of the JSON alone."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import __main__ as command
from benchmarks import measure, naive, topics
from protolib import bank, cams, maps, matching, metrics, presets
from protolib.data import regions

C = 4


def test_naive_clusters_and_white_shares_are_those_of_the_kernels():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_array_equal(naive.kmeans(X, X[:3]), bank.lloyd(X, X[:3]).labels)
    images = rng.integers(180, 256, (3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(naive.white_share(images), regions.white_share(images))


def test_the_naive_matching_loss_is_that_of_the_kernel_and_so_is_its_gradient():
    p = replace(presets.preset("released_code"), chunk=0, theta_fg=1.0, theta_bg=1.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 16, 16, generator=generator)
    prototypes = F.normalize(torch.randn(C * p.K, 12, generator=generator), dim=1)
    logits = torch.randn(3, C * p.K, 4, 4, generator=generator)
    labels = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    encode = lambda pictures: F.adaptive_avg_pool2d(pictures, 2).flatten(1)
    unit = lambda pictures: F.normalize(encode(pictures), dim=1)
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    slow = naive.matching_loss(images, first, labels, prototypes, encode, p.K)
    fast = matching.matching_loss(images, second, labels, prototypes, unit, p)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    slow.backward(), fast.backward()
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-3, atol=1e-5)


def test_naive_masks_and_scores_are_those_of_the_kernels():
    base = replace(presets.preset("quick"), size=64)
    recipe = dict(scores="unit", gating="zeroed", tta="six", align_corners=True)
    p, (net, images, truth) = replace(base, **recipe), topics._judged(base)
    images, truth = images[:2], truth[:2]
    labels = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 0]])
    slow = np.stack(naive.six_views(net.read, net.prepare(images), labels, p.fusion, p.K))
    scores, _ = cams.predict(net, images, p, p.tta)
    fast = maps.argmax_masks(scores, labels, p.gating).numpy()
    assert (slow != fast).mean() < 1e-3  # where two scores differ by their rounding alone
    matrix, boundary = naive.score(truth, fast, C, metrics.band_width(*truth.shape[1:]))
    counts = metrics.Counts.of(truth, fast, C)
    np.testing.assert_array_equal(matrix, counts.matrix)
    np.testing.assert_array_equal(boundary, counts.boundary)


def test_ratios_are_those_of_a_round_and_the_first_round_is_not_counted(capsys):
    now, order = [0.0], []

    def work(name, takes):
        def one():
            order.append(name)
            now[0] += takes[order.count(name) - 1]

        return one

    both = {"slow": work("slow", [99, 50, 8, 20, 9]), "fast": work("fast", [77, 60, 4, 2, 3])}
    made = measure.compare("a thing", both, 3, clock=lambda: now[0])
    # the first two of each find operations and memory
    assert order == ["slow"] * 2 + ["fast"] * 2 + ["slow", "fast"] * 3
    assert made["variants"]["slow"]["seconds"] == {"median": 9, "lowest": 8, "highest": 20}
    assert made["ratios"] == {"fast": {"median": 3, "lowest": 2, "highest": 10}}
    assert made["what"] == "a thing" and made["repeats"] == 3
    assert "fast" in capsys.readouterr().out


@pytest.mark.skipif(not measure.RESET.exists(), reason="Linux alone keeps the account")
def test_peak_memory_and_operations_of_a_product(root):
    # in a process of its own: this one has pages of earlier tests that it fills again
    words = """
import json, torch
from benchmarks import measure
from protolib.training import keep_freed_memory
keep_freed_memory()
torch.ones(50_000_000).sum()  # 200 MB that stay with us
product = lambda: torch.ones(2000, 2000) @ torch.ones(2000, 2000)
print(json.dumps(measure.compare("product", {"torch": product}, 1)["variants"]["torch"]))
"""
    told = subprocess.run(
        [sys.executable, "-c", words], cwd=root, capture_output=True, text=True, check=True
    )
    made = json.loads(told.stdout.splitlines()[-1])
    assert made["gflop"] == 2 * 2000**3 / 1e9
    assert 30 < made["peak_mb"] < 90  # three matrices of 16 MB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere who outlives a command is lost")
def test_the_cost_of_a_command_holds_what_outlives_it():
    busy = "import time\nwhile time.process_time() < 1: pass"
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}])"
    cpu, wall = topics._spent([sys.executable, "-c", leave])
    assert 1 <= cpu <= wall * 2


def test_the_table_says_what_ran_where_and_what_did_not(tmp_path, monkeypatch):
    both = {
        "slow": {"seconds": measure.summary([0.2]), "peak_mb": None, "gflop": None},
        "fast": {"seconds": measure.summary([0.05, 0.1]), "peak_mb": 12.4, "gflop": 1.234},
    }
    ratios = {"fast": measure.summary([2.0, 4.0])}
    row = {"what": "work", "repeats": 2, "variants": both, "ratios": ratios}
    known = {
        "bank": {"machine": {"machine": "M", "torch": "2"}, "seconds": 3, "comparisons": [row]}
    }
    lines = command.table(known)
    told = "`python -m benchmarks bank` | work | fast | 75.0 | 50.0 to 100 | 3.00 | 2.00 to 4.00"
    assert f"| {told} | 12 | 1.23 |" in lines
    assert "| `python -m benchmarks step` | not run | | | | | | | |" in lines
    assert lines[-2] == "bank: machine M, torch 2; 3 s in all."
    monkeypatch.setattr(command, "HERE", tmp_path)
    (tmp_path / "README.md").write_text(f"before\n{command.BEGIN}old\n{command.END}after\n")
    command.write_table({"cpu": tmp_path / "none.json"})
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "not run" in text and "old" not in text


@pytest.mark.slow
def test_every_case_of_the_step_takes_one_and_the_bank_is_full():
    for name, (kind, p) in topics.gpu.cases(64, tiny=True).items():
        case = kind(p, "cpu", 2)
        before = [w.clone() for w in case.net.heads.parameters()]
        case.step(None)
        moved = [not a.equal(b) for a, b in zip(before, case.net.heads.parameters())]
        assert any(moved), name
        assert topics.losses.trust(case.bank, p) == 1, name
