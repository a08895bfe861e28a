"""Encoders: frozen, scaled by hand, and each published key layout loaded into the features that it
should give."""

import hashlib
import io
import json
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import small_clip
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from protolib.nets import backbones, encoders, weights
from protolib.nets.published import TRUST

NO_INFO = weights.WeightsInfo("", "", "", "", 0)


@pytest.fixture(scope="module")
def lite0():
    return encoders.load("lite0")


def scaled(x, mean, std):
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def shake(model: nn.Module) -> nn.Module:
    """Fresh norms are ones and zeros, which would hide two swapped tensors."""
    for p in model.parameters():
        nn.init.normal_(p, 0.0, 0.1)
    return model.eval()


def assert_map(encoder, images, tokens):
    """The encoder's one map holds these tokens (B, n, D), row by row, and pools to their mean."""
    (found,) = encoder.maps(images)
    assert found.shape[2] == found.shape[3] and found.shape[1] == encoder.D
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.pooled([found]), tokens.mean(1), rtol=1e-4, atol=1e-5)


def published(model: nn.Module, folder) -> dict:
    """The state of a model of transformers under the names in which it is published."""
    model.save_pretrained(folder / "saved")
    return load_file(folder / "saved" / "model.safetensors")


def test_features_are_pooled_maps_of_four_strides(lite0, x):
    state = backbones.lite0_state(weights.read(backbones.lite0_file().path))
    net = (
        timm.create_model("tf_efficientnet_lite0", features_only=True)
        .to(memory_format=torch.channels_last)
        .eval()
    )
    net.load_state_dict(state, strict=False)
    with torch.no_grad():
        maps = net(x * 2 - 1)
        assert [tuple(m.shape[1:]) for m in maps] == [
            (16, 32, 32),
            (24, 16, 16),
            (40, 8, 8),
            (112, 4, 4),
            (320, 2, 2),
        ]
        expected = torch.cat([m.mean((2, 3)) for m in maps[1:]], 1)
        assert torch.equal(lite0(x), expected)
    assert lite0.D == expected.shape[1] == 496 and lite0.info.sha256 == backbones.LITE0_SHA256


@pytest.mark.parametrize("name", ["lite0", "swin_test"])
def test_encoder_is_frozen_but_passes_gradient_to_the_image(name):
    encoder = encoders.load(name)
    encoder.train()
    assert not any(m.training for m in encoder.modules()) and not any(
        p.requires_grad for p in encoder.parameters()
    )
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    encoder(x).sum().backward()
    assert (x.grad.abs().sum((2, 3)) > 0).all() and all(
        p.grad is None for p in encoder.parameters()
    )


def test_preprocessing_of_one_pixel_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    image[0, :, 2, 1] = torch.tensor([0.5, 0.25, 1.0])  # R, G, B
    plain = encoders.Encoder("x", nn.Identity(), 3, NO_INFO, backbones.IMAGENET)
    # (.5 - .485) / .229, (.25 - .456) / .224, (1 - .406) / .225
    expected = torch.tensor([0.0655022, -0.9196429, 2.64])
    torch.testing.assert_close(plain(image)[0, :, 2, 1], expected, rtol=1e-5, atol=0)
    turned = encoders.Encoder(
        "x", nn.Identity(), 3, NO_INFO, backbones.IMAGENET, None, encoders.BGR
    )
    # (1 - .485) / .229, (.25 - .456) / .224, (.5 - .406) / .225
    expected = torch.tensor([2.2489083, -0.9196429, 0.4177778])
    torch.testing.assert_close(turned(image)[0, :, 2, 1], expected, rtol=1e-5, atol=0)
    half = encoders.Encoder("x", nn.Identity(), 3, NO_INFO, None, 2)
    ramp = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    # antialiased halving: a triangle of 1, 3, 3, 1, cut at the border to 3, 3, 1, along each side
    triangle = torch.tensor([[3.0, 3, 1, 0], [0, 1, 3, 3]]) / 7
    expected = triangle @ ramp[0, 0] @ triangle.T
    torch.testing.assert_close(half.features(ramp)[0, 0], expected, rtol=1e-6, atol=0)
    # then the image as a whole is stretched to [0, 1]; in row and column, 0 to 1 in the ratio 4 : 1
    torch.testing.assert_close(
        half(ramp)[0, 0], torch.tensor([[0.0, 0.2], [0.8, 1.0]]), rtol=1e-6, atol=1e-7
    )


def test_maps_of_lite0_pool_to_its_features(lite0, x):
    maps = lite0.maps(x)
    # strides 4 to 32 of 64 px
    shapes = [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    assert [tuple(m.shape[1:]) for m in maps] == shapes
    torch.testing.assert_close(lite0.pooled(maps), lite0(x), rtol=1e-5, atol=1e-5)
    assert sum(m.shape[1] for m in maps) == lite0.D
    assert not any(m.requires_grad for m in maps)


def test_swin_has_its_projected_tokens_as_a_map(x):
    encoder = encoders.load("swin_test")
    (tokens,) = encoder.maps(x)
    assert tokens.shape == (2, 16, 8, 8)  # 64 px, 4 a patch, merged once
    torch.testing.assert_close(encoder.pooled([tokens]), encoder(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        hidden = encoder.net.model(encoder.prepare(x)).last_hidden_state  # (2, 64, 16)
        third = encoder.net.projection_head(hidden[:, 3 * 8 + 5])
    torch.testing.assert_close(tokens[:, :, 3, 5], third, rtol=1e-5, atol=1e-5)


def test_embed_keeps_order_and_scale(lite0):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8))
    dataset = [{"image": image} for image in images]
    expected = lite0(images.float() / 255).numpy()
    np.testing.assert_allclose(
        encoders.embed(lite0, dataset, batch=2), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        encoders.embed(lite0, dataset, batch=2, pooled=True), expected, rtol=1e-4, atol=1e-5
    )


@pytest.fixture
def swin(folder, monkeypatch):
    """SWIN_T at the sizes of SWIN_TEST, and a shaken classifier of that size by transformers."""
    from transformers import SwinConfig, SwinForImageClassification

    monkeypatch.setattr(encoders, "SWIN_T", encoders.SWIN_TEST)
    torch.manual_seed(1)
    return shake(SwinForImageClassification(SwinConfig(**encoders.SWIN_TEST, num_labels=5)))


def indices(state: dict) -> dict:
    """The index buffers that published files of Swin hold beside their weights."""
    tables = [k for k in state if k.endswith("relative_position_bias_table")]
    assert tables
    return {k.replace("bias_table", "index"): torch.zeros(16, 16, dtype=torch.long) for k in tables}


def test_medclip_is_the_vision_tower_of_the_published_zip(folder, swin, x):
    tower = {
        k.replace("swin.", "vision_model.model."): v
        for k, v in published(swin, folder).items()
        if "swin." in k
    }
    assert "vision_model.model.encoder.layers.0.blocks.0.attention.self.query.weight" in tower
    projection = torch.randn(512, 16)
    state = (
        tower
        | indices(tower)
        | {
            "vision_model.projection_head.weight": projection,
            "logit_scale": torch.ones(()),
            "text_model.model.embeddings.word_embeddings.weight": torch.ones(4, 4),
            "text_model.projection_head.weight": projection,
        }
    )
    for spoil in ("", "vision_model.projection_head.weight"):
        buffer = io.BytesIO()
        torch.save({k: v for k, v in state.items() if k != spoil}, buffer)
        with zipfile.ZipFile(folder / "medclip-vit-pretrained.zip", "w") as archive:
            archive.writestr("pytorch_model.bin", buffer.getvalue())
        if spoil:
            with pytest.raises(
                ValueError, match=r"medclip-vit-pretrained.zip .* \(first: projection_head.weight\)"
            ):
                encoders.load("medclip")
            continue
        encoder = encoders.load("medclip")
        assert (
            encoder.D == 512
            and encoder.info.loaded == len(tower) + 1
            and encoder.info.missing == ()
        )
        assert encoder.info.ignored == (
            ".*relative_position_index$",
            "logit_scale",
            r"text_model\.",
        )
        with torch.no_grad():
            pooled = swin.swin(scaled(x, *encoders.XRAY)).pooler_output
            torch.testing.assert_close(encoder(x), pooled @ projection.T, rtol=1e-5, atol=1e-5)


def test_medclip_as_released_is_imagenet_behind_a_seeded_projection(folder, swin, x):
    state = published(swin, folder)
    save_file(state | indices(state), folder / "swin.safetensors")
    encoder, again = encoders.load("medclip_released"), encoders.load("medclip_released")
    draw = torch.rand(512, 16, generator=torch.Generator().manual_seed(42))
    projection = (2 * draw - 1) / 4  # nn.Linear draws from +-1 / sqrt(16)
    assert torch.equal(encoder.net.projection_head.weight, projection)
    assert (
        encoder.info.missing == ("projection_head.weight",)
        and encoder.info.ignored[1] == r"classifier\."
    )
    with torch.no_grad():
        pooled = swin.swin(x[:, [2, 1, 0]]).pooler_output  # B, G, R, not scaled
        torch.testing.assert_close(encoder(x), pooled @ projection.T, rtol=1e-5, atol=1e-5)
        assert torch.equal(encoder(x), again(x))


def test_swin_test_is_the_same_for_every_seed_and_leaves_the_generator_alone(x):
    torch.manual_seed(5)
    first, drawn = encoders.load("swin_test"), torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    second = encoders.load("swin_test")
    assert first.D == 16 and first(x).shape == (2, 16) and torch.equal(first(x), second(x))
    assert first.info.loaded == 0 and first.info.missing == ("every tensor",)
    small = F.interpolate(x[..., :32, :32], (64, 64), mode="bilinear")
    assert torch.equal(first(x[..., :32, :32]), first(small))


def test_the_released_swin_has_its_published_number_of_parameters():
    encoder = encoders.load("swin_random")
    assert sum(p.numel() for p in encoder.parameters()) == 27_912_570 and encoder.D == 512


@pytest.mark.parametrize("name", ["clip", "plip"])
def test_clip_and_plip_are_the_projected_vision_tower(folder, monkeypatch, x, name):
    from transformers import CLIPConfig, CLIPModel

    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = small | {"image_size": 64, "patch_size": 16, "projection_dim": 8}
    monkeypatch.setattr(encoders, "CLIP_B32", vision)
    text = small | {
        "vocab_size": 20,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 8,
    }
    torch.manual_seed(2)
    full = shake(CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)))
    state = published(full, folder)
    positions = "vision_model.embeddings.position_ids"  # older files hold them
    torch.save(state | {positions: torch.arange(17)[None]}, folder / f"{name}.bin")
    encoder = encoders.load(name)
    assert (
        encoder.D == 8
        and encoder.name == name
        and encoder.info.licence == weights.PUBLISHED[name].licence
    )
    assert encoder.info.loaded == sum(k.startswith("vis") for k in state)
    with torch.no_grad():
        seen = full.vision_model(scaled(x, *encoders.OPENAI)).pooler_output
        torch.testing.assert_close(encoder(x), full.visual_projection(seen), rtol=1e-5, atol=1e-5)
        tokens = full.vision_model(scaled(x, *encoders.OPENAI)).last_hidden_state[:, 1:]
        tokens = full.visual_projection(full.vision_model.post_layernorm(tokens))  # (2, 16, 8)
        assert_map(encoder, x, tokens)
    torch.save({k: v for k, v in state.items() if k.startswith("text")}, folder / f"{name}.bin")
    with pytest.raises(
        ValueError,
        match=f"{name}.bin does not fit .* missing .first: vision_model.embeddings.class",
    ):
        encoders.load(name)


def test_dinov2_is_the_class_token(folder, monkeypatch, x):
    from transformers import Dinov2Config, Dinov2Model

    small = {
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    monkeypatch.setattr(encoders, "DINOV2_S", small)
    torch.manual_seed(3)
    full = shake(Dinov2Model(Dinov2Config(**small)))
    state = published(full, folder)
    assert "encoder.layer.0.attention.attention.query.weight" in state
    save_file(state, folder / "dinov2.safetensors")
    encoder = encoders.load("dinov2")
    x = F.interpolate(x, (224, 224), mode="bilinear")
    with torch.no_grad():
        tokens = full(scaled(x, *backbones.IMAGENET)).last_hidden_state
        torch.testing.assert_close(encoder(x), tokens[:, 0], rtol=1e-5, atol=1e-5)
        assert_map(encoder, x, tokens[:, 1:])
    assert encoder.D == 16 and encoder.info.loaded == len(state)


def test_uni_is_a_vit_of_timm(folder, monkeypatch):
    small = {
        "img_size": 32,
        "patch_size": 16,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "init_values": 1e-5,
    }
    monkeypatch.setattr(encoders, "UNI_L16", small)
    full = shake(timm.create_model("vit_large_patch16_224", num_classes=0, **small))
    torch.save(full.state_dict(), folder / "uni.bin")
    encoder, x = encoders.load("uni"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(x), full(scaled(x, *backbones.IMAGENET)), rtol=1e-5, atol=1e-5
        )
        assert_map(encoder, x, full.forward_features(scaled(x, *backbones.IMAGENET))[:, 1:])
    assert encoder.D == 24 and encoder.info.loaded == len(full.state_dict())


VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}
CFG = {"input_size": [3, 32, 32], "mean": [0.7, 0.5, 0.6], "std": [0.2, 0.3, 0.1]}


def test_any_repository_in_timms_form_is_an_encoder(folder, x):
    """Its config.json names architecture, sizes and scaling, as timm pushes them to the hub."""
    home = folder / "lab" / "tiny"
    home.mkdir(parents=True)
    full = shake(timm.create_model("vit_small_patch16_224", num_classes=5, **VIT))
    save_file(full.state_dict(), home / "model.safetensors")
    config = {
        "architecture": "vit_small_patch16_224",
        "num_classes": 5,
        "global_pool": "token",
        "model_args": VIT,
        "pretrained_cfg": CFG | {"classifier": "head"},
    }
    with pytest.raises(FileNotFoundError, match="'timm:lab/tiny' needs the config.json of its"):
        encoders.load("timm:lab/tiny")
    (home / "config.json").write_text(json.dumps(config))
    encoder, full.head = encoders.load("timm:lab/tiny"), nn.Identity()
    half = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    prepared = scaled(half, CFG["mean"], CFG["std"])
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), full(prepared), rtol=1e-5, atol=1e-5)
        assert_map(encoder, x, full.forward_features(prepared)[:, 1:])
    assert (encoder.D, encoder.size, encoder.info.ignored) == (24, 32, (r"head\.",))
    assert encoder.info.source == "lab/tiny model.safetensors, brought by hand"
    # other sizes by interpolated positions
    assert encoders.load("timm:lab/tiny", 64).maps(x)[0].shape == (2, 24, 4, 4)
    before = encoders.identity("timm:lab/tiny")
    config["pretrained_cfg"]["mean"] = [0.0, 0.0, 0.0]
    (home / "config.json").write_text(json.dumps(config))
    assert encoders.identity("timm:lab/tiny") != before
    state = full.state_dict()
    save_file({k: v for k, v in state.items() if k != "norm.weight"}, home / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit .* 1 missing \(first: norm.weight\)"):
        encoders.load("timm:lab/tiny")


def test_a_model_of_timm_is_an_encoder_by_its_name_and_tag(folder):
    home = folder / "timm" / "test_resnet.r160_in1k"
    home.mkdir(parents=True)
    full = shake(timm.create_model("test_resnet.r160_in1k"))
    with pytest.raises(FileNotFoundError, match="timm/test_resnet.r160_in1k/, with its config"):
        encoders.load("timm:test_resnet.r160_in1k")
    save_file(full.state_dict(), home / "model.safetensors")
    encoder, cfg = encoders.load("timm:test_resnet.r160_in1k", 64), full.default_cfg
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = full.forward_features(scaled(x, cfg["mean"], cfg["std"]))
        torch.testing.assert_close(encoder.maps(x)[0], maps, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder(x), maps.mean((2, 3)), rtol=1e-4, atol=1e-4)


@pytest.fixture
def repository(folder):
    """A tiny DINOv2 with registers as its makers would push it, and its network."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 24, "num_hidden_layers": 2}
    config = Dinov2WithRegistersConfig(**sizes, num_attention_heads=3, num_register_tokens=4)
    net, home = shake(Dinov2WithRegistersModel(config)), folder / "lab" / "dino"
    net.save_pretrained(home)
    scale = {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}
    scale |= {"image_mean": [0.7, 0.5, 0.6], "image_std": [0.2, 0.3, 0.1]}
    (home / "preprocessor_config.json").write_text(json.dumps(scale))
    return home, net


def test_any_vision_transformer_of_the_hub_is_an_encoder(repository):
    home, net = repository
    encoder, x = encoders.load("hf:lab/dino"), torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        found = net(scaled(x, [0.7, 0.5, 0.6], [0.2, 0.3, 0.1])).last_hidden_state
        torch.testing.assert_close(encoder(x), found[:, 0], rtol=1e-5, atol=1e-5)
        assert_map(encoder, x, found[:, 5:])  # behind the class token and four registers
    assert (encoder.D, encoder.size) == (24, 28) and encoder.info.missing == ()
    assert encoders.load("hf:lab/dino", 56).maps(x)[0].shape == (2, 24, 4, 4)
    with pytest.raises(ValueError, match="cannot read patches at 30 px: .* such as 28 or 42"):
        encoders.load("hf:lab/dino", 30)
    assert encoders.identity("hf:lab/dino") != weights.identity("hf:lab/dino")
    # copies: what load_file gives lies on the file
    state = {key: v.clone() for key, v in load_file(home / "model.safetensors").items()}
    state.pop("layernorm.weight")
    save_file(state, home / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="does not fit .*: missing .'layernorm.weight'.,"):
        encoders.load("hf:lab/dino")
    (home / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="needs the preprocessor_config.json of its repos"):
        encoders.load("hf:lab/dino")


def test_a_network_that_is_no_vision_transformer_is_refused(folder):
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    ResNetModel(config).save_pretrained(folder / "lab" / "net")
    scale = folder / "lab" / "net" / "preprocessor_config.json"
    scale.write_text('{"size": 32}')
    with pytest.raises(ValueError, match="its preprocessor_config.json lacks image_mean"):
        encoders.load("hf:lab/net")
    scale.write_text('{"size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    with pytest.raises(ValueError, match="'hf:lab/net' is a resnet: of these vision transformers"):
        encoders.load("hf:lab/net")


def test_code_of_a_repository_runs_only_where_it_is_trusted(repository, monkeypatch):
    home, net = repository
    config = json.loads((home / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config |= {"model_type": "own_kind", "auto_map": names}
    (home / "config.json").write_text(json.dumps(config))
    # nobody but its own code knows its names
    save_file(net.state_dict(), home / "model.safetensors", {"format": "pt"})
    marker = home / "ran"
    (home / "own.py").write_text(
        "from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel\n"
        f"open({str(marker)!r}, 'w').close()\n"
        "class OwnConfig(Dinov2WithRegistersConfig):\n    model_type = 'own_kind'\n"
        "class OwnModel(Dinov2WithRegistersModel):\n    config_class = OwnConfig\n"
    )
    monkeypatch.delenv(TRUST, raising=False)
    with pytest.raises(PermissionError, match="runs code of its repository.*--trust-remote-code"):
        encoders.load("hf:lab/dino")
    assert not marker.exists()
    before = encoders.identity("hf:lab/dino")
    monkeypatch.setenv(TRUST, "1")
    x = torch.rand(1, 3, 28, 28)
    with torch.no_grad():
        found = net(scaled(x, [0.7, 0.5, 0.6], [0.2, 0.3, 0.1])).last_hidden_state
        made = encoders.load("hf:lab/dino")
        torch.testing.assert_close(made(x), found[:, 0], rtol=1e-5, atol=1e-5)
    assert marker.exists() and encoders.identity("hf:lab/dino") == before
    (home / "own.py").write_text((home / "own.py").read_text() + "# another version\n")
    assert encoders.identity("hf:lab/dino") != before


class Visual(nn.Module):
    """Stands for the vision tower of the conch package: (embedding, tokens)."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 4)

    def forward(self, images):
        return self.trunk(images.mean((2, 3))), None


class CoCa(nn.Module):
    def __init__(self, embed_dim, vision_cfg):
        super().__init__()
        self.visual, self.text = Visual(), nn.Linear(2, 2)


def test_conch_uses_the_package_of_its_authors_but_loads_strictly(folder, monkeypatch, x):
    with pytest.raises(
        ImportError,
        match="encoder 'conch' needs the package of its authors: pip install git.*CONCH",
    ):
        encoders.load("conch")
    config = {"embed_dim": 4, "vision_cfg": {"image_size": 64}, "custom_text": True}
    (folder / "conch_ViT-B-16.json").write_text(json.dumps(config))
    names = (
        "conch",
        "conch.open_clip_custom",
        "conch.open_clip_custom.coca_model",
        "conch.open_clip_custom.factory",
    )
    modules = {name: types.ModuleType(name) for name in names}
    modules["conch.open_clip_custom.coca_model"].CoCa = CoCa
    modules["conch.open_clip_custom.factory"].CFG_DIR = folder
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    full = CoCa(4, {})
    torch.save(full.state_dict() | {"logit_scale": torch.ones(())}, folder / "conch.bin")
    encoder = encoders.load("conch")
    torch.testing.assert_close(encoder(x), full.visual(scaled(x, *encoders.OPENAI))[0])
    assert encoder.D == 4 and encoder.size == 64 and encoder.info.loaded == 2
    with pytest.raises(ValueError, match="encoder 'conch' pools by attention and has no maps"):
        encoder.maps(x)
    with pytest.raises(
        ValueError, match="'conch' cannot read patches at 224 px: .* multiple of 64"
    ):
        encoders.load("conch", 224)
    torch.save({"visual.trunk.weight": full.visual.trunk.weight.data}, folder / "conch.bin")
    with pytest.raises(
        ValueError, match=r"conch.bin does not fit Visual.*1 missing \(first: trunk.bias\)"
    ):
        encoders.load("conch")


def test_the_reading_size_is_given_or_its_own(x, folder, monkeypatch):
    for name, own in (("lite0", 0), ("swin_test", 64)):
        assert encoders.load(name).size == own and encoders.load(name, 32).size == 32
    small = encoders.load("lite0", 32)
    shrunk = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(small(x), small.net(shrunk * 2 - 1), rtol=1e-4, atol=1e-5)
    assert [m.shape[2] for m in small.maps(x)] == [8, 4, 2, 1]
    assert encoders.load("swin_test", 32).maps(x)[0].shape == (2, 16, 4, 4)
    # growing stays plain bilinear, to the last digit
    assert torch.equal(
        encoders.load("lite0", 96).prepare(x),
        F.interpolate(x, (96, 96), mode="bilinear") * 2 - 1,
    )


@pytest.mark.parametrize(
    "name, size, message",
    [
        ("clip", 48, "'clip' cannot read patches at 48 px: choose a multiple of 32, .* 32 or 64"),
        ("dinov2", 64, "'dinov2' cannot .* 64 px: choose a multiple of 14, such as 56 or 70"),
        ("uni", 8, "'uni' cannot read patches at 8 px: .* of 16, such as 16 or 32"),
        ("medclip", 240, "'medclip' cannot .* 240 px: choose a multiple of 32, such as 224 or 256"),
        ("medclip", 192, "'medclip' cannot .* 192 px: choose a multiple of 32, such as 224 or 256"),
        ("swin_test", 60, "'swin_test' cannot .* 60 px: choose a multiple of 8, such as 56 or 64"),
        ("lite0", -32, "'lite0' cannot read patches at -32 px"),
    ],
)
def test_a_reading_size_that_its_positions_do_not_divide_is_refused(folder, name, size, message):
    with pytest.raises(ValueError, match=message):  # before its weights are missed
        encoders.load(name, size)


def test_transformers_read_other_sizes_than_they_were_trained_at(folder, monkeypatch, x):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    small = dict(encoders.CLIP_B32, image_size=64, patch_size=16, hidden_size=16)
    small |= {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(encoders, "CLIP_B32", small)
    full = shake(CLIPVisionModelWithProjection(CLIPVisionConfig(**small)))
    torch.save(full.state_dict(), folder / "clip.bin")
    encoder = encoders.load("clip", 96)
    assert encoder.maps(x)[0].shape == (2, 512, 6, 6)
    grown = F.interpolate(x, (96, 96), mode="bilinear")
    with torch.no_grad():
        expected = full(scaled(grown, *encoders.OPENAI), interpolate_pos_encoding=True).image_embeds
        torch.testing.assert_close(encoder(x), expected, rtol=1e-5, atol=1e-5)


def test_identity_is_the_file_that_would_be_loaded(folder, monkeypatch):
    assert encoders.identity("lite0") == encoders.load("lite0").info.sha256
    assert encoders.identity("swin_random") == encoders.identity("swin_test") == "random"
    assert encoders.identity("medclip_released") == "random"
    (folder / "swin.safetensors").write_bytes(b"swin")
    expected = hashlib.sha256(b"swin").hexdigest()
    assert encoders.identity("medclip_released") == expected
    assert encoders.identity("medclip") == "random"
    with pytest.raises(ValueError, match="encoder 'clop' is not known"):
        encoders.identity("clop")


@pytest.mark.parametrize("name", ["medclip", "medclip_released", "clip", "plip", "dinov2", "uni"])
def test_without_its_file_an_encoder_is_an_error_never_random(folder, name):
    with pytest.raises(
        FileNotFoundError,
        match="are not on this machine and could not be had .HF_HUB_OFFLINE is set.",
    ):
        encoders.load(name)


def test_unknown_names_teach():
    with pytest.raises(
        ValueError, match="encoder 'clop' is not known; choose one of lite0, medclip, medclip_rel"
    ):
        encoders.load("clop")
    for name in ("hf:../../etc", "hf:lab", "timm:../x", "timm:vit_small_patch16_224", "web:a/b"):
        with pytest.raises(ValueError, match="is not known; choose one of lite0"):
            encoders.load(name)
    with pytest.raises(ValueError, match="'quiltnet' .* is not built here, for it wants open_clip"):
        encoders.load("quiltnet")


@pytest.mark.parametrize("module", ["protolib.matching", "protolib.nets.encoders"])
def test_importing_costs_torch_and_no_library_of_models(module):
    program = f"import sys, {module}; print(*{{'timm', 'transformers'}} & set(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == ""


# Text


@pytest.mark.parametrize("name", encoders.TEXT)
def test_texts_are_the_projected_end_of_the_text_tower(folder, monkeypatch, name):
    full = small_clip.write(folder, monkeypatch, name)
    texts = ["a photo of tumour", "stroma"]
    found = encoders.embed_texts(name, texts)
    assert found.shape == (2, 8) and found.dtype == np.float32
    for row, ids in zip(found, ([6, 0, 1, 2, 3, 7], [6, 4, 7])):
        with torch.no_grad():
            hidden = full.text_model(input_ids=torch.tensor([ids])).last_hidden_state
            wanted = F.normalize(full.text_projection(hidden[:, -1]), dim=1)[0]  # at the end
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-6)
    # the images of the same file lie in the same space: one logit of CLIP, without its scale
    images = torch.rand(1, 3, 64, 64)
    ids = torch.tensor([[6, 4, 7]])
    pixels = scaled(images, *encoders.OPENAI)
    with torch.no_grad():
        logit = full(input_ids=ids, pixel_values=pixels).logits_per_image / full.logit_scale.exp()
    cosine = F.normalize(encoders.load(name)(images), dim=1) @ torch.from_numpy(found[1])
    torch.testing.assert_close(cosine, logit[0], rtol=1e-5, atol=1e-5)


def test_a_text_that_does_not_fit_is_refused(folder, monkeypatch):
    small_clip.write(folder, monkeypatch, "clip")
    with pytest.raises(ValueError, match="'a a a a a a a' is 9 tokens, clip reads 3 to 8"):
        encoders.embed_texts("clip", ["a a a a a a a"])
    with pytest.raises(ValueError, match="prompt '' is 2 tokens"):
        encoders.embed_texts("clip", [""])
    monkeypatch.setitem(encoders.CLIP_TEXT, "bos_token_id", 5)
    with pytest.raises(ValueError, match="clip_tokenizer.json is not CLIP's: .* begins with 6"):
        encoders.embed_texts("clip", ["a"])
    with pytest.raises(
        ValueError, match="encoder 'lite0' has no text tower .* choose clip or plip"
    ):
        encoders.embed_texts("lite0", ["a"])


def test_without_its_words_a_text_tower_says_what_to_bring(folder, monkeypatch):
    small_clip.write(folder, monkeypatch, "clip")
    assert encoders.identity("clip_tokenizer") == weights.sha256(folder / "clip_tokenizer.json")
    (folder / "clip_tokenizer.json").unlink()
    assert encoders.identity("clip_tokenizer") == "random"
    wanted = (
        r"bring tokenizer.json of https://huggingface.co/openai/clip-vit-base-patch32 and put it"
    )
    with pytest.raises(FileNotFoundError, match=f"{wanted} into .* as clip_tokenizer.json"):
        encoders.embed_texts("clip", ["a"])


def test_prompts_are_a_data_set_s_own_or_say_the_title():
    from protolib.data.specs import SPECS

    phantom, bcss = SPECS["phantom"], SPECS["bcss-wsss"]
    assert encoders.prompts("photo", phantom)["LYM"] == ["a photo of lymphocytes"]
    assert list(encoders.prompts("photo", bcss)) == list(bcss.classes)
    own, any_ = encoders.prompts("described", bcss), encoders.prompts("described", phantom)
    assert {len(said) for said in (own | any_).values()} == {3}
    assert any_["NEC"][0] == "a histopathology image of necrosis" not in own["NEC"]
    assert len(set(sum(own.values(), []))) == 12  # no sentence stands for two classes
    with pytest.raises(
        ValueError, match="prompts 'poems' are not known; choose photo or described"
    ):
        encoders.prompts("poems", phantom)
