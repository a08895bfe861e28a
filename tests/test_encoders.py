"""The embedded encoder: its weights, their names, frozenness, features."""

import numpy as np
import pytest
import timm
import torch

from protolib import encoders


@pytest.fixture(scope="module")
def lite0():
    return encoders.load("lite0")


def test_weights_fit_timm_by_name_and_by_value():
    state, info = encoders.lite0_state()
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert [k for k in missing if not k.endswith("num_batches_tracked")] == [] and unexpected == []
    assert info.tensors == 296 and info.sha256 == encoders.LITE0_SHA256


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "efficientnet-lite0.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="efficientnet-lite0.pth has sha256 .* expected 5793"):
        encoders.lite0_state(path)


def test_features_are_pooled_maps_of_four_strides(lite0):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = lite0.net(x * 2 - 1)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    expected = torch.cat([m.flatten(2).mean(2) for m in maps[1:]], 1)
    torch.testing.assert_close(lite0(x), expected, rtol=1e-4, atol=1e-5)
    assert lite0.D == expected.shape[1] == 496


def test_encoder_is_frozen_but_passes_gradient_to_the_image(lite0):
    lite0.train()
    assert not lite0.training and not any(p.requires_grad for p in lite0.parameters())
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    lite0(x).sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in lite0.parameters())


def test_embed_keeps_order_and_scale(lite0):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8))
    dataset = [{"image": image} for image in images]
    expected = lite0(images.float() / 255).numpy()
    np.testing.assert_allclose(encoders.embed(lite0, dataset, batch=2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride, reductions", [(8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16]), (32, [2, 4, 8, 16, 32])])
def test_backbone_pyramid_has_the_asked_stride(stride, reductions):
    net, info = encoders.backbone("tf_efficientnet_lite0", stride)
    with torch.no_grad():
        assert [64 // m.shape[-1] for m in net(torch.zeros(1, 3, 64, 64))] == reductions
    assert info.sha256 == encoders.LITE0_SHA256


def test_other_backbones_say_that_they_are_random():
    net, info = encoders.backbone("resnet18", 16)
    assert info is None and net.feature_info.reduction()[-1] == 16


def test_unknown_names_teach():
    with pytest.raises(ValueError, match="encoder 'clop' is not known; choose one of lite0"):
        encoders.load("clop")
    with pytest.raises(ValueError, match="backbone 'resnet19' is not in timm"):
        encoders.backbone("resnet19", 16)
