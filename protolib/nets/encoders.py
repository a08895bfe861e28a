"""Frozen image encoders behind one call: features, their preprocessing, and the record of which
weights they run on."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from protolib.nets import backbones, weights

OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
XRAY = (0.5862785803043838,) * 3, (0.27950088968644304,) * 3  # MedCLIP's, of grey chest X-rays
BGR = (2, 1, 0)

SWIN_T = dict(
    image_size=224, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7
)
SWIN_TEST = dict(image_size=64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)
CLIP_B32 = dict(
    image_size=224,
    patch_size=32,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=512,
)
DINOV2_S = dict(
    image_size=518, patch_size=14, hidden_size=384, num_hidden_layers=12, num_attention_heads=6
)
UNI_L16 = dict(
    img_size=224, patch_size=16, embed_dim=1024, depth=24, num_heads=16, init_values=1e-5
)
# the published names and those of transformers 5.23; an older release still has the published ones
ATTENTION = (
    (r"attention\.(?:self|attention)\.(q|k|v)(?:uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.output\.dense", "attention.o_proj"),
)
SWIN_RENAME = (
    (r"^swin\.", ""),
    *ATTENTION,
    (
        r"attention\.self\.relative_position_bias",
        "attention.relative_position_bias.relative_position_bias",
    ),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(?<!attention\.)output\.dense", "mlp.fc2"),
)
SWIN_IGNORE = (
    r"classifier\.",
    r".*relative_position_index$",
)  # the second follows from the window's size


class Encoder(nn.Module):
    """A frozen encoder: images (B, 3, H, W) float in [0, 1], RGB -> features (B, D) float, not
    normalised. Notebook 02.

    `prepare` resizes (bilinear) to size x size px where given, puts the channels into `order`, then
    takes (x - mean) / std channel by channel in that order, or, with scaling None, stretches each
    image to [0, 1] as a whole. `features` runs net: prepared images -> (B, D).
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        D: int,
        info: weights.WeightsInfo,
        scaling: tuple | None,
        size: int | None = None,
        order: tuple[int, int, int] = (0, 1, 2),
    ):
        super().__init__()
        self.name, self.net, self.D, self.info, self.size, self.stretch = (
            name,
            net,
            D,
            info,
            size,
            scaling is None,
        )
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in scaling or ((0.0,) * 3, (1.0,) * 3)
        )
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.order = list(order)
        self.eval().requires_grad_(
            False
        )  # frozen weights: the backward pass reaches the images but pays for no weight

    def train(self, mode: bool = True):
        """Stay in evaluation mode: the batch statistics of a frozen encoder must not move."""
        return super().train(False)

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the network wants them: (B, 3, H, W) float in [0, 1], RGB -> (B, 3, size,
        size). Notebook 02."""
        images = self._resized(
            images if self.order == [0, 1, 2] else images[:, self.order]
        )  # no copy without need
        if self.stretch:
            low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
            return (images - low) / (high - low + 1e-8)
        return (images - self.mean) / self.std

    def features(self, prepared: Tensor) -> Tensor:
        """Features (B, D) float of prepared images, of any size. Notebook 02."""
        return self.net(self._resized(prepared))

    def _resized(self, images: Tensor) -> Tensor:
        if not self.size or images.shape[2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(self.prepare(images))


class PooledMaps(nn.Module):
    """Global averages of all maps of a pyramid but the first, concatenated: texture and content.
    Notebook 02."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        maps = self.net(images)[1:]  # the stride-2 map holds little but edges
        return torch.cat([m.mean((2, 3)) for m in maps], dim=1)  # (B, D)


class Swin(nn.Module):
    """Swin and a projection without bias: the vision tower of MedCLIP, under its names. Wang et
    al., EMNLP 2022."""

    def __init__(self, D: int, **sizes):
        super().__init__()
        from transformers import (  # here, so that importing this module stays quick
            SwinConfig,
            SwinModel,
        )

        self.model = SwinModel(SwinConfig(**sizes))
        self.projection_head = nn.Linear(self.model.config.hidden_size, D, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.model(images).pooler_output)


class Output(nn.Module):
    """One named output of a model of transformers."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[self.name]


def _found(name: str) -> tuple[weights.WeightsFile, dict[str, Tensor]]:
    """The file of an encoder and its tensors; asked for before a network is built, which may take
    seconds."""
    file = weights.find(name)
    return file, weights.read(file.path)


def lite0() -> Encoder:
    """The embedded encoder, EfficientNet-Lite0 trained on ImageNet: maps at strides 4 to 32, D =
    496. Notebook 02."""
    pyramid = backbones.backbone(backbones.LITE0, stride=32)
    return Encoder(
        "lite0", PooledMaps(pyramid.net), sum(pyramid.channels[1:]), pyramid.info, backbones.HALF
    )


def medclip() -> Encoder:
    """MedCLIP-ViT as the paper names it: Swin-T and projection trained on chest X-rays, D = 512.
    Paper, Sec. 3.4."""
    file, state = _found("medclip")
    net = Swin(512, **SWIN_T)
    rename = ((r"^vision_model\.", ""), *SWIN_RENAME)
    info = weights.put(net, state, file, (r"text_model\.", "logit_scale", *SWIN_IGNORE), rename)
    return Encoder("medclip", net, 512, info, XRAY, SWIN_T["image_size"])


def medclip_released() -> Encoder:
    """What the released code runs as MedCLIP: ImageNet's Swin-T and a random projection, seed 42, D
    = 512; item P1.

    It gets B, G, R, each image stretched to [0, 1]; the matching loss stretches its own pictures
    and uses `features` (M14). The projection comes from a generator of our own, so it depends on
    the version of torch only; it is not the authors' projection, which depended on their versions
    (P5) and which no file of theirs holds.
    """
    file, state = _found("swin")
    net = Swin(512, **SWIN_T)
    info = weights.put(net.model, state, file, SWIN_IGNORE, SWIN_RENAME)
    draw = torch.rand(net.projection_head.weight.shape, generator=torch.Generator().manual_seed(42))
    bound = net.projection_head.in_features**-0.5  # nn.Linear's own range
    net.projection_head.weight.data = (draw * 2 - 1) * bound
    info = replace(info, missing=("projection_head.weight",))
    return Encoder("medclip_released", net, 512, info, None, SWIN_T["image_size"], BGR)


def swin_random(name: str, D: int, sizes: dict) -> Encoder:
    """The encoder of medclip_released without its weights: the same work, features worth nothing;
    tests and timings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        net = Swin(D, **sizes)
    info = weights.WeightsInfo(
        "random, seed 42: for tests and timings only", "", "", "", 0, ("every tensor",)
    )
    return Encoder(name, net, D, info, None, sizes["image_size"], BGR)


def clip(name: str) -> Encoder:
    """CLIP ViT-B/32 with its projection, as published or tuned on pathology ("plip"), D = 512.
    Paper, Table 3."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    file, state = _found(name)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_B32))
    ignore = (
        r"text_model\.",
        r"text_projection\.",
        "logit_scale",
        r"vision_model\.embeddings\.position_ids",
    )
    info = weights.put(model, state, file, ignore)
    D, size = CLIP_B32["projection_dim"], CLIP_B32["image_size"]
    return Encoder(name, Output(model, "image_embeds"), D, info, OPENAI, size)


def dinov2() -> Encoder:
    """DINOv2 ViT-S/14, its class token, D = 384. Oquab et al., TMLR 2024; paper, Table 3."""
    from transformers import Dinov2Config, Dinov2Model

    file, state = _found("dinov2")
    model = Dinov2Model(Dinov2Config(**DINOV2_S))
    info = weights.put(model, state, file, rename=ATTENTION)
    # trained at 518 px, published with 224: the model interpolates its positions
    return Encoder(
        "dinov2",
        Output(model, "pooler_output"),
        DINOV2_S["hidden_size"],
        info,
        backbones.IMAGENET,
        224,
    )


def uni() -> Encoder:
    """UNI, a ViT-L/16 trained on pathology slides, D = 1024; gated. Chen et al., Nature Medicine
    30, 2024."""
    import timm

    file, state = _found("uni")
    net = timm.create_model(
        "vit_large_patch16_224", num_classes=0, dynamic_img_size=True, **UNI_L16
    )
    info = weights.put(net, state, file)
    return Encoder("uni", net, UNI_L16["embed_dim"], info, backbones.IMAGENET, UNI_L16["img_size"])


class Conch(nn.Module):
    """The vision tower of CONCH, contrastive embedding."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)[0]  # (embedding, tokens)


def conch() -> Encoder:
    """CONCH, ViT-B/16 trained on pathology images and captions, D = 512; gated. Lu et al., Nature
    Medicine 30, 2024.

    Its contrastive embedding, from 448 px. Raises ImportError that says how to get its package.
    """
    try:
        from conch.open_clip_custom.coca_model import CoCa
        from conch.open_clip_custom.factory import CFG_DIR
    except ImportError as error:
        raise ImportError(
            "encoder 'conch' needs the package of its authors: pip install git+https://github.com/mahmoodlab/CONCH.git"
        ) from error
    file, state = _found("conch")
    config = json.loads((CFG_DIR / "conch_ViT-B-16.json").read_text("utf-8"))
    config.pop("custom_text", None)
    visual = CoCa(**config).visual  # their loader would leave out what does not fit
    info = weights.put(visual, state, file, ("text", "logit_scale"), ((r"^visual\.", ""),))
    return Encoder(
        "conch",
        Conch(visual),
        config["embed_dim"],
        info,
        OPENAI,
        config["vision_cfg"]["image_size"],
    )


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "lite0": lite0,
    "medclip": medclip,
    "medclip_released": medclip_released,
    "clip": partial(clip, "clip"),
    "plip": partial(clip, "plip"),
    "dinov2": dinov2,
    "uni": uni,
    "conch": conch,
    "swin_random": partial(swin_random, "swin_random", 512, SWIN_T),
    "swin_test": partial(swin_random, "swin_test", 16, SWIN_TEST),
}


def load(name: str) -> Encoder:
    """The frozen encoder of that name; raises ValueError that lists the known ones. Notebook 02.

    Raises as `weights.find`, `weights.read` and `weights.put` where its weights cannot be had or
    are not its own.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder '{name}' is not known; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]()


@torch.no_grad()
def embed(encoder: Encoder, dataset, batch: int = 64) -> np.ndarray:
    """Features (n, D) float32 of every patch of a data set, in its order, on the encoder's device.
    Notebook 02."""
    device = next(encoder.parameters()).device
    loader = DataLoader(dataset, batch_size=batch)
    rows = [
        encoder(b["image"].to(device).float() / 255).cpu()
        for b in tqdm(loader, "embed", leave=False)
    ]
    return torch.cat(rows).numpy()
