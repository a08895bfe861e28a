"""The table of published weights, and the command that says what is here."""

import os
import subprocess
import sys
import tomllib

import pytest

from protolib.__main__ import main
from protolib.nets import published
from protolib.nets.published import CLASSES, LOADERS, PUBLISHED, TRUST
from protolib.study import doctor


def test_every_encoder_has_its_licence_gate_size_loader_and_class():
    encoders = {name: known for name, known in PUBLISHED.items() if known.D}
    assert len(encoders) >= 16
    for name, known in encoders.items():
        assert known.licence and known.what and known.millions > 0 and known.loader in LOADERS, name
        assert known.classroom in CLASSES, name
        # who must be granted access cannot be stood for by a teacher
        assert known.gated == (known.classroom == "each"), name
        if name.startswith(("timm:", "hf:")):
            assert name.partition(":")[2] in (known.repo, known.repo.removeprefix("timm/")), name
    facts = {
        "uni": ("CC-BY-NC-ND-4.0", True, 1024),
        "timm:bioptimus/H-optimus-0": ("Apache-2.0", False, 1536),
        "hf:owkin/phikon-v2": ("non-commercial, own terms", False, 1024),
        "quiltnet": ("MIT", False, 512),
    }
    for name, wanted in facts.items():
        known = PUBLISHED[name]
        assert (known.licence, known.gated, known.D) == wanted


def test_another_repository_is_known_by_its_name():
    assert published.published("hf:lab/net").repo == "lab/net"
    assert published.published("timm:lab/net").loader == "timm"
    assert published.published("timm:resnet18.a1_in1k").repo == "timm/resnet18.a1_in1k"
    for name in ("hf:net", "hf:a/../b", "hf:a/b/c", "timm:resnet18", "x:a/b", "hf:", "nobody"):
        assert published.published(name) is None


def test_what_is_here_comes_first_and_the_others_say_what_they_wait_for(folder):
    (folder / "dinov2.safetensors").write_bytes(b"")
    (folder / "kaiko-ai" / "midnight").mkdir(parents=True)
    (folder / "kaiko-ai" / "midnight" / "model.safetensors").write_bytes(b"")
    states = {row.name: row.state for row in doctor.encoders()}
    assert list(states)[:3] == ["lite0", "dinov2", "hf:kaiko-ai/midnight"]
    assert set(list(states.values())[:3]) == {"here"}
    assert states["uni"] == "gated: ask for access" and states["hf:owkin/phikon-v2"] == "can be had"
    assert states["quiltnet"] == "not built here (open_clip)"


def test_the_command_says_machine_and_encoders(folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv(TRUST, "1")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "hf_secret" not in out and f"({folder})" in out
    assert "hub: not asked, for HF_HUB_OFFLINE is set; a token is set; code of repos" in out
    assert "GPU: none that nvidia-smi shows" in out and f"{doctor.cores()} to use of" in out
    assert "  uni: gated: ask for access\n      ViT-L/16, slides; 303 million" in out
    assert "licence: CC-BY-NC-ND-4.0; in a class: each with an account of their own" in out


@pytest.mark.parametrize(
    "script, wanted",
    [
        ("echo 'Some GPU, 81559 MiB'; echo 'Other, 1 MiB'", "Some GPU, 81559 MiB; Other, 1 MiB"),
        ("exit 9", "nvidia-smi fails (CalledProcessError): is the driver loaded?"),
    ],
)
def test_gpus_are_those_of_the_driver(tmp_path, monkeypatch, script, wanted):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    assert doctor.gpu() == wanted


def test_it_is_quick_for_it_loads_neither_torch_nor_models(folder):
    code = (
        "import sys; from protolib.__main__ import main; main(['doctor']); "
        "print([n for n in ('torch', 'timm', 'transformers') if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n" and done.stdout.startswith("protolib ")


def test_code_is_trusted_by_a_flag_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TRUST, "")
    run = ["ablate", "table2", "--preset", "none", "--notebooks", str(tmp_path / "notebooks")]
    assert main(run) == 2 and not os.environ[TRUST]
    assert main([*run, "--trust-remote-code"]) == 2 and os.environ[TRUST] == "1"
    assert "preset 'none' is not known" in capsys.readouterr().err


def test_the_table_comes_with_the_package(root):
    data = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert "*.toml" in data["package-data"]["protolib.nets"]
