"""Backbones: shapes, strides, scaling, and each published key layout loaded into the maps that it
should give."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from protolib.nets import backbones, weights


def test_images_are_scaled_by_the_mean_and_std_of_the_weights():
    net = nn.Identity()
    net.channels, net.strides = (3,), (1,)
    images = torch.zeros(1, 3, 2, 2)
    images[0, :, 1, 0] = torch.tensor([0.5, 0.25, 1.0])
    (scaled,) = backbones.Backbone(net, backbones.IMAGENET, None)(images)
    # (.5 - .485) / .229, (.25 - .456) / .224, (1 - .406) / .225
    torch.testing.assert_close(
        scaled[:, 1, 0], torch.tensor([0.0655022, -0.9196429, 2.64]), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        scaled[:, 0, 0], torch.tensor([-2.1179039, -2.0357143, -1.8044444]), rtol=1e-5, atol=0
    )
    halves = {name for name, plan in backbones.NETS.items() if plan.scaling == backbones.HALF}
    assert halves == {"tf_efficientnet_lite0", "transunet"}


def test_embedded_weights_fit_timm_by_name():
    state = backbones.lite0_state(weights.read(backbones.lite0_file().path))
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert [k for k in missing if not k.endswith("num_batches_tracked")] == [] and unexpected == []
    assert len(state) == 296


def test_a_damaged_embedded_file_is_refused(tmp_path):
    (tmp_path / "efficientnet-lite0.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="efficientnet-lite0.pth has sha256 .* expected 5793"):
        backbones.lite0_file(tmp_path / "efficientnet-lite0.pth")


@pytest.mark.parametrize(
    "stride, strides", [(8, (2, 4, 8, 8, 8)), (16, (2, 4, 8, 16, 16)), (32, (2, 4, 8, 16, 32))]
)
def test_the_embedded_backbone_at_each_stride(x, stride, strides):
    net = backbones.backbone("tf_efficientnet_lite0", stride).eval()
    plain = timm.create_model(
        "tf_efficientnet_lite0", features_only=True, output_stride=stride
    ).eval()
    plain.load_state_dict(
        backbones.lite0_state(weights.read(backbones.lite0_file().path)), strict=False
    )
    plain = plain.to(memory_format=torch.channels_last)
    with torch.no_grad():
        maps, expected = net(x), plain(x * 2 - 1)
    assert net.strides == strides == tuple(64 // m.shape[3] for m in maps)
    assert net.channels == (16, 24, 40, 112, 320) == tuple(m.shape[1] for m in maps)
    assert all(
        torch.equal(m, e) for m, e in zip(maps, expected)
    )  # (x - .5) / .5 and 2 x - 1 round alike
    assert net.info.sha256 == backbones.LITE0_SHA256 and net.info.ignored == (
        "bn2",
        "classifier",
        "conv_head",
    )
    assert net.info.loaded == len(plain.state_dict()) == 288


def test_resnets_load_their_published_file(folder, x):
    torch.manual_seed(1)
    full = timm.create_model("resnet18", num_classes=1000)
    save_file(full.state_dict(), folder / "resnet18.safetensors")
    net = backbones.backbone("resnet18", 32).eval()
    assert net.channels == (64, 64, 128, 256, 512) and net.strides == (2, 4, 8, 16, 32)
    assert net.info.ignored == (r"fc\.",)
    with torch.no_grad():
        maps = net(x)
        expected = full.eval().forward_features((x - net.mean) / net.std)
        dilated = backbones.backbone("resnet18", 8)(x)
    torch.testing.assert_close(
        maps[-1], expected, rtol=1e-3, atol=1e-4
    )  # channels_last sums in another order
    assert [64 // m.shape[3] for m in dilated] == [2, 4, 8, 8, 8]
    deep = backbones.NETS["resnet50"].build(16)
    assert tuple(deep.channels) == (64, 256, 512, 1024, 2048) and tuple(deep.strides) == (
        2,
        4,
        8,
        16,
        16,
    )


@pytest.mark.parametrize("stride, sides", [(16, [56, 28, 14, 14]), (32, [56, 28, 14, 7])])
def test_mit_has_the_strides_of_the_code_and_of_the_paper(stride, sides):
    net = backbones.backbone("mit_test", stride).eval()
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 224, 224))
    assert [m.shape[2:] for m in maps] == [(side, side) for side in sides]
    assert net.channels == (8, 16, 24, 32) == tuple(m.shape[1] for m in maps)
    assert net.strides == tuple(224 // side for side in sides) and net.info is None


def test_mit_b1_has_the_published_number_of_parameters():
    net = backbones.NETS["mit_b1"].build(16)
    assert sum(p.numel() for p in net.parameters()) == 13_151_424 and net.channels == (
        64,
        128,
        320,
        512,
    )


def nvlabs(state: dict) -> dict:
    """The published Hugging Face names of a state turned into those of the original file, written
    out one by one."""
    parts = {
        "layer_norm_1": "norm1",
        "layer_norm_2": "norm2",
        "attention.self.query": "attn.q",
        "attention.self.sr": "attn.sr",
        "attention.self.layer_norm": "attn.norm",
        "attention.output.dense": "attn.proj",
        "mlp.dense1": "mlp.fc1",
        "mlp.dense2": "mlp.fc2",
        "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    }
    renamed = {}
    for key, value in state.items():
        words, last = key.split(".")[:-1], key.split(".")[-1]
        if words[0] == "classifier":
            renamed[f"head.{last}"] = value
            continue
        _, _, kind, level, *inner = words
        level = int(level) + 1
        if kind == "patch_embeddings":
            renamed[f"patch_embed{level}.{'proj' if inner == ['proj'] else 'norm'}.{last}"] = value
        elif kind == "layer_norm":
            renamed[f"norm{level}.{last}"] = value
        elif inner[1:] == ["attention", "self", "key"]:
            both = [value, state[key.replace("self.key", "self.value")]]
            renamed[f"block{level}.{inner[0]}.attn.kv.{last}"] = torch.cat(both)
        elif inner[1:] != ["attention", "self", "value"]:
            renamed[f"block{level}.{inner[0]}.{parts['.'.join(inner[1:])]}.{last}"] = value
    return renamed


def mit_by_hand(s: dict, x: torch.Tensor, steps, heads, reductions) -> list[torch.Tensor]:
    """The Mix Transformer written from its paper and the original file's names: one block a
    level."""
    maps = []
    norm = lambda v, name, eps: F.layer_norm(
        v, v.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps
    )
    linear = lambda v, name: F.linear(v, s[f"{name}.weight"], s[f"{name}.bias"])
    for i, (step, n, r) in enumerate(zip(steps, heads, reductions), start=1):
        kernel = s[f"patch_embed{i}.proj.weight"]
        x = F.conv2d(x, kernel, s[f"patch_embed{i}.proj.bias"], step, kernel.shape[-1] // 2)
        B, C, h, w = x.shape
        t = norm(x.flatten(2).transpose(1, 2), f"patch_embed{i}.norm", 1e-5)  # (B, h * w, C)
        b = f"block{i}.0"
        a = norm(t, f"{b}.norm1", 1e-6)
        source = a
        if r > 1:
            grid = a.transpose(1, 2).reshape(B, C, h, w)
            grid = F.conv2d(grid, s[f"{b}.attn.sr.weight"], s[f"{b}.attn.sr.bias"], r)
            source = norm(grid.flatten(2).transpose(1, 2), f"{b}.attn.norm", 1e-5)
        q = linear(a, f"{b}.attn.q").reshape(B, -1, n, C // n).transpose(1, 2)
        k, v = linear(source, f"{b}.attn.kv").reshape(B, -1, 2, n, C // n).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(2, 3) * (C // n) ** -0.5).softmax(-1) @ v
        t = t + linear(attended.transpose(1, 2).reshape(B, -1, C), f"{b}.attn.proj")
        m = linear(norm(t, f"{b}.norm2", 1e-6), f"{b}.mlp.fc1")
        m = m.transpose(1, 2).reshape(B, -1, h, w)
        m = F.conv2d(
            m,
            s[f"{b}.mlp.dwconv.dwconv.weight"],
            s[f"{b}.mlp.dwconv.dwconv.bias"],
            1,
            1,
            groups=m.shape[1],
        )
        t = norm(t + linear(F.gelu(m.flatten(2).transpose(1, 2)), f"{b}.mlp.fc2"), f"norm{i}", 1e-6)
        x = t.transpose(1, 2).reshape(B, C, h, w)
        maps.append(x)
    return maps


@pytest.fixture
def tiny_mit(folder, monkeypatch):
    """mit_b1 at the width of mit_test, and a state of it under the names of nvidia/mit-b1, as
    transformers saves it."""
    from transformers import SegformerConfig, SegformerForImageClassification

    plan = backbones.NETS["mit_b1"]
    monkeypatch.setitem(
        backbones.NETS, "mit_b1", replace(plan, build=partial(backbones.MiT, **backbones.MIT_TEST))
    )
    torch.manual_seed(2)
    model = SegformerForImageClassification(SegformerConfig(**backbones.MIT_TEST, num_labels=5))
    for (
        p
    ) in model.parameters():  # fresh norms are ones and zeros, which would hide two swapped tensors
        nn.init.normal_(p, 0.0, 0.2)
    model.save_pretrained(folder / "saved")
    state = load_file(folder / "saved" / "model.safetensors")
    assert (
        "segformer.encoder.block.0.0.attention.self.query.weight" in state
        and "classifier.weight" in state
    )
    return state


@pytest.mark.parametrize("stride", [16, 32])
def test_both_published_layouts_of_mit_give_the_maps_of_the_paper(folder, tiny_mit, x, stride):
    save_file(tiny_mit, folder / "mit_b1.safetensors")
    hub = backbones.backbone("mit_b1", stride).eval()
    (folder / "mit_b1.safetensors").unlink()
    original = nvlabs(tiny_mit)
    assert {
        "patch_embed1.proj.weight",
        "block1.0.attn.kv.weight",
        "norm4.bias",
        "head.weight",
    } <= set(original)
    torch.save(original, folder / "mit_b1.pth")
    labs = backbones.backbone("mit_b1", stride).eval()
    assert hub.info.source.startswith("mit_b1.safetensors") and labs.info.source.startswith(
        "mit_b1.pth"
    )
    assert hub.info.loaded == labs.info.loaded == len(tiny_mit) - 2 and labs.info.ignored == (
        r"classifier\.",
    )
    with torch.no_grad():
        scaled = (x - hub.mean) / hub.std
        expected = mit_by_hand(
            original, scaled, (4, 2, 2, stride // 16), (1, 2, 3, 4), (8, 4, 2, 1)
        )
        for one, other, by_hand in zip(hub(x), labs(x), expected, strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(
                one, by_hand, rtol=1e-4, atol=1e-4
            )  # float32, four levels deep


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda s: s.pop("segformer.encoder.layer_norm.0.bias"),
            r"1 missing \(first: model\..*layer_norm\S*.bias\)",
        ),
        (
            lambda s: s.update({"decoder.weight": torch.ones(1)}),
            r"1 unknown \(first: decoder.weight\)",
        ),
        (lambda s: [s.pop(k) for k in list(s) if ".block." in k], r"missing \(first: model\."),
    ],
)
def test_a_partial_or_foreign_file_is_refused(folder, tiny_mit, spoil, message):
    spoil(tiny_mit)
    save_file(tiny_mit, folder / "mit_b1.safetensors")
    with pytest.raises(ValueError, match=f"mit_b1.safetensors does not fit MiT.*({message})"):
        backbones.backbone("mit_b1", 16)


def test_a_cut_off_file_is_refused(folder, tiny_mit):
    save_file(tiny_mit, folder / "mit_b1.safetensors")
    (folder / "mit_b1.safetensors").write_bytes((folder / "mit_b1.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="mit_b1.safetensors cannot be read as weights"):
        backbones.backbone("mit_b1", 16)


def test_a_wide_block_by_hand():
    torch.manual_seed(3)
    block = backbones.WideBlock(
        (4, 6, 8, 10), (1, 3, 1), stride=2, dilations=(1, 2, 1), drop=0.5
    ).eval()
    for p in block.state_dict().values():
        if p.is_floating_point():
            p.uniform_(0.5, 1.5)
    s, x = block.state_dict(), torch.randn(1, 4, 8, 8)

    def active(v, n):
        n = f"bn_branch{n}"
        return F.relu(
            F.batch_norm(
                v, *(s[f"{n}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
            )
        )

    first = active(x, "2a")
    branch = F.conv2d(first, s["conv_branch2a.weight"], stride=2)
    branch = F.conv2d(active(branch, "2b1"), s["conv_branch2b1.weight"], padding=2, dilation=2)
    branch = F.conv2d(active(branch, "2b2"), s["conv_branch2b2.weight"])
    out, seen = block(x)
    torch.testing.assert_close(seen, first)
    torch.testing.assert_close(out, branch + F.conv2d(first, s["conv_branch1.weight"], stride=2))
    same = backbones.WideBlock((4, 6, 4), (3, 3)).eval()
    assert not hasattr(same, "conv_branch1")  # its input is added as it is
    for p in same.parameters():
        nn.init.zeros_(p)
    assert torch.equal(same(x)[0], x)


# blocks of the published ResNet-38d: name, channels along the branch, kernels
WIDE = [
    ("b2", (64, 128, 128), (3, 3)),
    ("b2_1", (128, 128, 128), (3, 3)),
    ("b2_2", (128, 128, 128), (3, 3)),
    ("b3", (128, 256, 256), (3, 3)),
    ("b3_1", (256, 256, 256), (3, 3)),
    ("b3_2", (256, 256, 256), (3, 3)),
    ("b4", (256, 512, 512), (3, 3)),
    *[(f"b4_{i}", (512, 512, 512), (3, 3)) for i in range(1, 6)],
    ("b5", (512, 512, 1024), (3, 3)),
    ("b5_1", (1024, 512, 1024), (3, 3)),
    ("b5_2", (1024, 512, 1024), (3, 3)),
    ("b6", (1024, 512, 1024, 2048), (1, 3, 1)),
    ("b7", (2048, 1024, 2048, 4096), (1, 3, 1)),
]


def test_resnet38d_has_the_published_names_and_shapes(folder):
    expected = {"conv1a.weight": (64, 3, 3, 3)}
    batch_norm = ("weight", "bias", "running_mean", "running_var")
    for name, widths, kernels in WIDE:
        for step, wide, out, k in zip(("2a", "2b1", "2b2"), widths, widths[1:], kernels):
            expected |= {f"{name}.bn_branch{step}.{part}": (wide,) for part in batch_norm}
            expected[f"{name}.conv_branch{step}.weight"] = (out, wide, k, k)
        if widths[0] != widths[-1]:
            expected[f"{name}.conv_branch1.weight"] = (widths[-1], widths[0], 1, 1)
    expected |= {f"bn7.{part}": (4096,) for part in batch_norm}
    with pytest.warns(
        UserWarning,
        match="'resnet38d' starts from random weights: .*ilsvrc-cls_rna-a1_cls1000_ep-0001",
    ):
        net = backbones.backbone("resnet38d", 8).eval()
    found = {
        k: tuple(v.shape)
        for k, v in net.net.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    assert found == expected
    assert (
        net.info is None
        and net.strides == (2, 4, 8, 8, 8)
        and net.channels == (128, 256, 512, 1024, 4096)
    )
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 48, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 48 // s, 64 // s) for c, s in zip(net.channels, net.strides)
    ]
    dilations = {
        n: m.dilation[0]
        for n, m in net.net.named_modules()
        if isinstance(m, nn.Conv2d) and m.dilation[0] > 1
    }
    assert dilations == {
        "b5.conv_branch2b1": 2,
        "b5_1.conv_branch2a": 2,
        "b5_1.conv_branch2b1": 2,
        "b5_2.conv_branch2a": 2,
        "b5_2.conv_branch2b1": 2,
        "b6.conv_branch2b1": 4,
        "b7.conv_branch2b1": 4,
    }


@pytest.mark.slow
def test_transunet_loads_the_published_names_and_gives_the_tokens_of_timm(tmp_path):
    torch.manual_seed(4)
    published = timm.create_model("vit_base_r50_s16_224", num_classes=0).eval()
    (tmp_path / "w.bin").write_bytes(b"stands for the file")
    plan = backbones.NETS["transunet"]
    net = plan.build(16).eval()
    state = published.state_dict() | {"head.weight": torch.ones(2, 768)}
    info = weights.put(
        net, state, weights.WeightsFile(tmp_path / "w.bin", "", "", ""), plan.ignore, plan.rename
    )
    assert info.loaded == len(published.state_dict()) and info.ignored == (r"head\.",)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps, tokens = net(images), published.forward_features(images)[:, 1:]
        assert torch.allclose(maps[-1].flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-4)
        assert torch.equal(maps[3], published.patch_embed.backbone(images))
        small = net(images[..., :96, :64])  # positions interpolated
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 224 // s, 224 // s) for c, s in zip(net.channels, net.strides)
    ]
    assert [tuple(m.shape[1:]) for m in small] == [
        (c, 96 // s, 64 // s) for c, s in zip(net.channels, net.strides)
    ]


# one of each family; strides and channels of its maps
FAMILIES = {
    "vit_tiny_patch16_224": ((16,) * 4, (192,) * 4),
    "vit_small_patch16_dinov3": ((16,) * 4, (384,) * 4),
    "eva02_tiny_patch14_224": ((14,) * 4, (192,) * 4),
    "swin_tiny_patch4_window7_224": ((4, 8, 16, 32), (96, 192, 384, 768)),
    "pvt_v2_b0": ((4, 8, 16, 32), (32, 64, 160, 256)),
    "fastvit_t8": ((4, 8, 16, 32), (48, 96, 192, 384)),
    "repvit_m0_9": ((4, 8, 16, 32), (48, 96, 192, 384)),
    "hrnet_w18_small": ((2, 4, 8, 16, 32), (64, 128, 256, 512, 1024)),
    "convnext_atto": ((4, 8, 16, 32), (40, 80, 160, 320)),
    "mambaout_femto": ((4, 8, 16, 32), (48, 96, 192, 288)),
    "mobilenetv3_small_050": ((2, 4, 8, 16, 32), (16, 8, 16, 24, 288)),
    "ghostnet_050": ((2, 4, 8, 16, 32), (8, 12, 20, 40, 80)),
    "efficientvit_b0": ((4, 8, 16, 32), (16, 32, 64, 128)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*starts from random weights:UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_any_timm_model_is_a_pyramid(folder, name):
    strides, channels = FAMILIES[name]
    net = backbones.backbone(name, strides[-1]).eval()
    assert net.strides == strides and net.channels == channels and net.info is None
    with torch.no_grad():
        maps = net(torch.rand(1, 3, 224, 224))
    expected = [(c, 224 // s, 224 // s) for c, s in zip(channels, strides)]
    assert [tuple(m.shape[1:]) for m in maps] == expected
    for side in {112, 64} - ({64} if 14 in strides else {112} if "hrnet" in name else set()):
        maps = net(torch.rand(1, 3, side, side))
        # halved again and again: networks round up or down where a side does not divide
        assert all(abs(m.shape[2] * s - side) < s for m, s in zip(maps, strides))
    sum(m.sum() for m in maps).backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


@pytest.mark.filterwarnings("ignore:.*starts from random weights:UserWarning")
@pytest.mark.parametrize(
    "name", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "test_convnext.r160_in1k"]
)
def test_a_model_of_timm_starts_from_the_weights_of_its_tag(folder, name):
    """The maps are those of timm's own loading of the same file."""
    arch, home = name.partition(".")[0], folder / "timm" / name
    home.mkdir(parents=True)
    full = timm.create_model(arch)
    for p in full.parameters():
        nn.init.normal_(p, 0.0, 0.1)
    save_file(full.state_dict(), home / "model.safetensors")
    file = str(home / "model.safetensors")
    stride = backbones.outline(arch)[1]
    wanted = timm.create_model(
        *(arch, True),
        pretrained_cfg_overlay={"file": file},
        features_only=True,
        out_indices=backbones.outline(arch)[0],
    )
    mine = backbones.backbone(f"timm:{name}", stride).eval()
    cfg, images = timm.get_pretrained_cfg(name), torch.rand(2, 3, 160, 160)
    prepared = (images - torch.tensor(cfg.mean).view(3, 1, 1)) / torch.tensor(cfg.std).view(3, 1, 1)
    with torch.no_grad():
        for a, b in zip(mine(images), wanted.eval()(prepared), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert mine.info.source == f"timm/{name} model.safetensors, brought by hand"
    assert backbones.identity(f"timm:{name}") == mine.info.sha256
    state = full.state_dict() | {"strange.weight": torch.zeros(1)}
    save_file(state, home / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 unknown \(first: strange.weight\)"):
        backbones.backbone(f"timm:{name}", stride)


def test_trying_a_model_first_draws_nothing(folder):
    drawn = []
    for tried in (backbones.outline, backbones.timm_strides, backbones.idle):
        tried.cache_clear()
    for _ in range(2):  # the second time what was tried is known
        torch.manual_seed(0)
        net = backbones.backbone("test_vit", 16, levels=(0, 1))
        drawn.append([next(net.parameters()).detach(), torch.rand(3)])
    assert all(torch.equal(first, second) for first, second in zip(*drawn))


@pytest.mark.filterwarnings("ignore:.*starts from random weights:UserWarning")
def test_a_transformer_gives_the_blocks_at_the_quarters_of_its_depth(folder):
    torch.manual_seed(0)
    net = backbones.backbone("vit_tiny_patch16_224", 16).eval()
    prepared = torch.rand(1, 3, 64, 64)
    seen = []
    for block in (2, 5, 8, 11):
        net.net.model.blocks[block].register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        maps = net.pyramid(prepared)
    for m, tokens in zip(maps, seen, strict=True):
        assert torch.equal(m.flatten(2).transpose(1, 2), tokens[:, 1:])  # without the class token


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*starts from random weights:UserWarning")
def test_sizes_that_a_timm_model_cannot_take_are_refused_with_the_reason(folder):
    refused = {
        "mixer_s32_224": (32, r"64 x 64 px: Input height \(64\) doesn't match model \(224\)"),
        "eva02_tiny_patch14_224": (
            14,
            "64 x 64 px: Input height .64. should be divisible by patch size .14.",
        ),
        "hiera_tiny_224": (32, "64 x 64 px: "),
    }
    for name, (stride, reason) in refused.items():
        net = backbones.backbone(name, stride).eval()
        with torch.no_grad():
            assert net(torch.zeros(1, 3, 224, 224))[-1].shape[2] == 224 // stride
        with pytest.raises(ValueError, match=f"backbone '{name}' cannot read images of {reason}"):
            net(torch.zeros(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*starts from random weights:UserWarning")
def test_a_model_of_one_size_is_built_for_the_size_of_the_images(folder):
    net = backbones.backbone("cait_xxs24_224", 16, levels=(0, 1), size=64).eval()
    assert [m.shape[1:] for m in net(torch.zeros(1, 3, 64, 64))] == [(192, 4, 4)] * 2
    with pytest.raises(ValueError, match="'cait_xxs24_224' cannot read images of 112 x 112 px"):
        net(torch.zeros(1, 3, 112, 112))
    with pytest.raises(ValueError, match="'efficientformer_l1' cannot read images of 64 x 64 px"):
        backbones.backbone("efficientformer_l1", 32, size=64)  # it has no such option


def test_timm_models_without_feature_maps_or_that_stride_are_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match="'inception_v3' cannot read .*: its maps are .*expected"):
        backbones.backbone("inception_v3", 32)  # not padded: its maps do not cover the image
    ask = backbones.ask_timm

    def without(name, **options):
        raise NotImplementedError("no features")

    monkeypatch.setattr(backbones, "ask_timm", without)
    with pytest.raises(
        ValueError, match="'resnet26t' of timm gives no feature maps .NotImpl.*no f"
    ):
        backbones.backbone("resnet26t", 32)
    monkeypatch.setattr(backbones, "ask_timm", ask)
    with pytest.raises(ValueError, match="'vit_tiny_patch16_224' cannot have stride 32: choose 16"):
        backbones.backbone("vit_tiny_patch16_224", 32)
    with pytest.raises(ValueError, match="'convnext_atto' cannot .* 4: choose 8 or 16 or 32"):
        backbones.backbone("convnext_atto", 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*starts from random weights:UserWarning")
@pytest.mark.parametrize(
    "name, stride, keep",
    [
        ("tf_efficientnet_lite0", 16, 3),
        ("resnet18", 32, 4),
        ("mit_test", 16, 3),
        ("mit_test", 32, 1),
        ("resnet38d", 8, 1),
        ("resnet38d", 8, 3),
        ("vit_tiny_patch16_224", 16, 2),
        ("mambaout_femto", 32, 2),
        ("mobilenetv3_small_050", 32, 3),
    ],
)
def test_only_what_is_read_is_there(folder, name, stride, keep):
    side = 64 if name != "resnet38d" else 16
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    whole = backbones.backbone(name, stride).eval()
    drawn = torch.rand(1)
    with torch.no_grad():
        expected = whole(x)[:keep]
    sizes = whole.channels[:keep], whole.strides[:keep]
    state = whole.state_dict()
    del whole
    torch.manual_seed(0)
    part = backbones.backbone(name, stride, levels=(0, keep - 1)).eval()
    assert torch.equal(torch.rand(1), drawn)  # the same draws from here on
    assert (part.channels, part.strides) == sizes
    assert len(part.state_dict()) < len(state)
    assert all(torch.equal(v, state[k]) for k, v in part.state_dict().items())
    maps = part(x)
    assert all(torch.equal(m, e) for m, e in zip(maps, expected, strict=True))
    maps[-1].sum().backward()  # nothing is left that no map depends on
    assert all(p.grad is not None for p in part.parameters() if p.requires_grad)


def test_all_levels_or_none_given_is_the_whole_network():
    whole = backbones.backbone("mit_test", 16)
    assert backbones.backbone("mit_test", 16, levels=(3,)).channels == whole.channels
    assert backbones.backbone("mit_test", 16, levels=(0, 9)).channels == whole.channels


@pytest.mark.parametrize("side, kernel, dilation", [(7, 5, 2), (7, 3, 2), (14, 5, 4), (3, 5, 2)])
def test_dilated_depthwise_convolutions_equal_the_plain_layer(side, kernel, dilation):
    torch.manual_seed(0)
    padding = kernel // 2 * dilation
    options = {"padding": padding, "dilation": dilation, "groups": 24, "bias": False}
    plain = nn.Conv2d(24, 24, kernel, **options).to(memory_format=torch.channels_last)
    quick = backbones.DilatedDepthwise(24, 24, kernel, **options)
    quick.load_state_dict(plain.state_dict())
    assert backbones.DilatedDepthwise.fits(plain) and list(quick.state_dict()) == ["weight"]
    x = torch.randn(4, 24, side, side + 2).to(memory_format=torch.channels_last)
    grad, found = torch.randn_like(x), []
    for layer in (plain, quick):
        seen = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = layer(seen)
        out.backward(grad)
        assert out.is_contiguous(memory_format=torch.channels_last)
        found.append((out.detach(), seen.grad, layer.weight.grad))
    for expected, given in zip(*found):
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=2e-5)
    assert torch.autograd.gradcheck(
        lambda v, w: backbones.ShiftedProducts.apply(v, w, 2),
        (
            torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True),
            torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True),
        ),
    )


def test_other_convolutions_stay_as_they_are():
    given = {"padding": 2, "dilation": 2, "groups": 8, "bias": False}
    assert backbones.DilatedDepthwise.fits(nn.Conv2d(8, 8, 3, **given))
    for change in ({"dilation": 1}, {"groups": 4}, {"bias": True}, {"stride": 2}, {"padding": 1}):
        assert not backbones.DilatedDepthwise.fits(nn.Conv2d(8, 8, 3, **(given | change)))
    assert not backbones.DilatedDepthwise.fits(nn.Conv2d(8, 16, 3, **given))
    net = backbones.backbone("tf_efficientnet_lite0", 16)
    quick = [m for m in net.modules() if isinstance(m, backbones.DilatedDepthwise)]
    assert [m.kernel_size[0] for m in quick] == [5, 5, 5, 3]
    assert not any(
        isinstance(m, backbones.DilatedDepthwise)
        for m in backbones.backbone("tf_efficientnet_lite0", 32).modules()
    )


def test_what_starts_from_random_weights_says_so(folder):
    with pytest.warns(
        UserWarning, match="'resnet18' starts from random weights: .*/timm/resnet18.tv_in1k"
    ):
        assert backbones.backbone("resnet18", 16).info is None
    with pytest.warns(
        UserWarning, match="'resnet10t' starts from random weights: no weights are published for"
    ):
        net = backbones.backbone("resnet10t", 16)
    assert net.strides[-1] == 16 and net.info is None


def test_identity_is_the_hash_of_what_is_loaded_and_says_nothing(folder, recwarn):
    assert backbones.identity(backbones.LITE0) == backbones.LITE0_SHA256
    for name in ("mit_test", "resnet10t", "mit_b1"):
        assert backbones.identity(name) == "random"
    assert not recwarn.list
    torch.manual_seed(1)
    save_file(timm.create_model("resnet18").state_dict(), folder / "resnet18.safetensors")
    assert backbones.identity("resnet18") == backbones.backbone("resnet18", 32).info.sha256


def test_unknown_names_and_strides_teach():
    with pytest.raises(
        ValueError, match="backbone 'resnet19' is none of tf_efficientnet_lite0, .*nor in timm"
    ):
        backbones.backbone("resnet19", 16)
    with pytest.raises(ValueError, match="backbone 'mit_b1' cannot have stride 8: choose 16 or 32"):
        backbones.backbone("mit_b1", 8)
    with pytest.raises(ValueError, match="backbone 'resnet38d' cannot have stride 16: choose 8"):
        backbones.backbone("resnet38d", 16)
