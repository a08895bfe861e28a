"""The plan of a run: its sums, what stands for missing weights, what is said of a card that is not
here, and a plan beside what was measured."""

import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from protolib import results
from protolib.__main__ import main
from protolib.experiment import Run
from protolib.presets import PRESETS
from protolib.study import plan
from protolib.study.plan import Cost

P = replace(PRESETS["smoke"], epochs=3, stage2_epochs=7, batch=16)
COST = Cost(
    embed=0.01,
    bank=0.02,
    step={"cam": 0.5, "pbip_stage2": 2.0},
    watch={"cam": 0.1, "pbip_stage2": 0.3},
    mask=0.05,
    score={"nearest_prototype": 0.2, "cam": 0.4, "pbip_stage2": 0.6},
    memory=1.5e9,
    of_memory="the CPU",
    patch_disk=1e6,
    mask_disk=1e3,
    fixed_disk=2e7,
)


def test_each_part_is_what_it_takes_times_how_often():
    made = {row.what: row.seconds for row in plan.rows(COST, P, (100, 10, 20))}
    assert made == pytest.approx(
        {
            "embedding and bank": 100 * 0.03,
            "Nearest prototype, nothing trained: scores": 20 * 0.2,
            # 100 patches are 6 full batches; val is looked at after each of three epochs
            "CAM: 18 steps": 18 * 0.5 + 3 * 10 * 0.1,
            "CAM: scores": 20 * 0.4,
            "pseudo masks": 100 * 0.05,
            "PBIP stage 2: 42 steps": 42 * 2.0,  # stage 2 is not watched
            "PBIP stage 2: scores": 20 * 0.6,
        }
    )
    twice = COST._replace(score=COST.score | {"pbip_masked_image": 0.1})
    [bank, *_] = plan.rows(twice, P, (100, 10, 20))
    assert bank.seconds == pytest.approx(2 * 100 * 0.03)  # masked images have their own space


def test_disk_is_patches_masks_and_what_stays_the_same():
    assert plan.disk(COST, (100, 10, 20)) == 130 * 1e6 + 100 * 1e3 + 2e7


def test_val_and_test_are_in_the_presets_proportion():
    assert plan.splits(PRESETS["quick"], 3200) == (3200, 640, 960)


def test_what_has_no_weights_is_said(monkeypatch):
    monkeypatch.setattr(plan, "_here", lambda name: name not in ("medclip", "clip", "uni"))
    found, said = plan.stand_in(PRESETS["paper_text"])
    assert (found.encoder, found.cluster_encoder) == ("swin_random", "")
    assert said == [
        "no weights of medclip here: random ones did its work",
        "embedding by clip, whose weights are not here: not known here",
    ]
    assert plan.stand_in(P) == (P, [])
    with pytest.raises(ValueError, match="no weights of encoder 'uni' here, and no other network"):
        plan.stand_in(replace(P, encoder="uni"))


def test_a_card_that_is_not_here_is_known_by_its_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "GPU", tmp_path / "gpu.json")
    asked = ["plan", "--preset", "paper_text", "--images", "1000", "--gpu"]
    assert main([*asked, "h100"]) == 0
    assert "On h100: not known here." in capsys.readouterr().out
    steps = {"paper text, batch 10, float32": {"seconds": 0.36, "peak_gb": 3.74}}
    run = {"device": "NVIDIA H100 80GB HBM3", "steps": steps}
    plan.GPU.write_text(json.dumps({"first": run}))
    assert main([*asked, "h100"]) == 0
    out = capsys.readouterr().out
    # ten epochs of a hundred steps
    assert "| PBIP stage 1: 1000 steps | 6 min" in out
    assert "memory: 3.7 GB of NVIDIA H100 80GB HBM3" in out and out.count("not known here") == 2
    assert main([*asked, "A100"]) == 0 and "On A100: not known here." in capsys.readouterr().out


def test_a_run_that_is_smaller_than_a_batch_is_refused(capsys):
    assert main(["plan", "--preset", "quick", "--images", "3"]) == 2
    assert "--images 3: give the number of training patches, 16 on" in capsys.readouterr().err


def _run(p, folder: str) -> tuple[float, float, int]:
    """Seconds, peak memory in MB and bytes on disk of a whole run."""
    run = Run(p, run_dir=folder, device="cpu")
    for split in ("train", "val", "test"):
        run.data(split)  # as in the plan, drawing is not counted
    run.features("val")
    began = time.perf_counter()
    run.record()
    seconds = time.perf_counter() - began
    return seconds, results.peak_rss_mb(), plan._size(Path(folder))


@pytest.mark.slow
def test_a_plan_is_near_what_a_run_takes(tmp_path):
    p = replace(PRESETS["smoke"], epochs=2, patches=(112, 32, 48))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        cost = pool.submit(plan.measure, p, "cpu", str(tmp_path / "plan")).result()
        seconds, memory, disk = pool.submit(_run, p, str(tmp_path / "run")).result()
    planned = sum(row.seconds for row in plan.rows(cost, p, p.patches))
    assert cost.memory / 1e6 == pytest.approx(memory, rel=0.25)
    assert plan.disk(cost, p.patches) == pytest.approx(disk, rel=0.05)
    # a quarter on an idle machine; others may work here while one of the two is measured
    assert seconds / 1.6 < planned < seconds * 1.6
