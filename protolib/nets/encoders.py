"""Frozen image encoders behind one call: features, their preprocessing, and the record of which
weights they run on."""

import inspect
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from protolib.files import read_json
from protolib.keys import digest
from protolib.nets import backbones, weights
from protolib.nets.published import TRUST, published

OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
XRAY = (0.5862785803043838,) * 3, (0.27950088968644304,) * 3  # MedCLIP's, of grey chest X-rays
BGR = (2, 1, 0)
REPOSITORY = ("config.json", "preprocessor_config.json")  # what tells a network and its scaling

SWIN_T: dict[str, Any] = {
    "image_size": 224,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
}
SWIN_TEST: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 8,
    "depths": (1, 1),
    "num_heads": (1, 2),
    "window_size": 4,
}
CLIP_B32: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 512,
}
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "projection_dim": 512,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
TEXT = ("clip", "plip")  # encoders whose text tower is read
TOKENS = "clip_tokenizer"  # PLIP is CLIP tuned further: one vocabulary
DINOV2_S: dict[str, Any] = {
    "image_size": 518,
    "patch_size": 14,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
}
UNI_L16: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "embed_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "init_values": 1e-5,
}
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
# the second follows from the window's size
SWIN_IGNORE = (
    r"classifier\.",
    r".*relative_position_index$",
)


class Encoder(nn.Module):
    """A frozen encoder: images (B, 3, H, W) float in [0, 1], RGB -> features (B, D) float, not
    normalised. Notebook 02.

    `prepare` resizes to size x size px where given, puts the channels into `order`, then takes
    (x - mean) / std channel by channel in that order, or, with scaling None, stretches each image
    to [0, 1] as a whole. `features` runs net: prepared images -> (B, D). `maps` and `pooled` are
    the same in two steps, with a choice between: which positions count.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        net: Any,
        D: int,
        info: weights.WeightsInfo | None,
        scaling: tuple | None,
        size: int = 0,
        order: tuple[int, int, int] = (0, 1, 2),
    ):
        super().__init__()
        self.name, self.net, self.D, self.info, self.size = name, net, D, info, size
        self.order, self.stretch = list(order), scaling is None
        for part, values in zip(("mean", "std"), scaling or ((0.0,) * 3, (1.0,) * 3)):
            self.register_buffer(part, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        # frozen weights: the backward pass reaches the images but pays for no weight
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True):
        """Stay in evaluation mode: the batch statistics of a frozen encoder must not move."""
        return super().train(False)

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the network wants them: (B, 3, H, W) float in [0, 1], RGB -> (B, 3, size,
        size). Notebooks 03 and 06."""
        # no copy without need
        images = self._resized(images if self.order == [0, 1, 2] else images[:, self.order])
        if self.stretch:
            low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
            return (images - low) / (high - low + 1e-8)
        return (images - self.mean) / self.std

    def features(self, prepared: Tensor) -> Tensor:
        """Features (B, D) float of prepared images, of any size. Notebook 02."""
        return self.net(self._resized(prepared))

    def _resized(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, size, size), bilinear; antialiased where it shrinks.

        So every pixel counts, as under a lower magnification; else those between the samples are
        skipped, and fine chromatin turns into noise.
        """
        side = (self.size, self.size)
        if not self.size or images.shape[2:] == side:
            return images
        shrinks = self.size < min(images.shape[2:])
        return F.interpolate(images, side, mode="bilinear", align_corners=False, antialias=shrinks)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(self.prepare(images))

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """Features position by position: images (B, 3, H, W) float in [0, 1], RGB -> maps
        (B, D_i, h_i, w_i) float, finest first; the D_i add up to D.

        Of a convolutional network its maps, of a transformer its patch tokens behind the last norm
        and the projection, laid out as a map. Nothing passes a gradient to the images. Raises
        ValueError where features are no mean of positions (conch).
        """
        if not hasattr(self.net, "maps"):
            raise ValueError(
                f"encoder '{self.name}' pools by attention and has no maps in the space of its "
                "features: choose another one for masked pooling"
            )
        return self.net.maps(self.prepare(images))

    def pooled(self, maps: list[Tensor]) -> Tensor:
        """The mean over positions of every map: maps as `maps` gave them -> (B, D) float.

        This is `features` for lite0 and Swin (medclip), whose features are a mean; it is not for
        clip, plip, dinov2 and uni, whose features are a class token: see `embed`. The mean under a
        map is maps.masked_average.
        """
        return torch.cat([m.mean((2, 3)) for m in maps], dim=1)


def laid_out(tokens: Tensor) -> Tensor:
    """Tokens of a square image as a map: (B, h * h, D) -> (B, D, h, h)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class PooledMaps(nn.Module):
    """Global averages of all maps of a pyramid but the first, concatenated: texture and content."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def maps(self, images: Tensor) -> list[Tensor]:
        """See Encoder.maps: L maps, finest first."""
        return self.net(images)[1:]  # the stride-2 map holds little but edges

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([m.mean((2, 3)) for m in self.maps(images)], dim=1)  # (B, D)


class Swin(nn.Module):
    """Swin and a projection without bias: the vision tower of MedCLIP, under its names. Wang
    et al., EMNLP 2022."""

    def __init__(self, D: int, **sizes):
        super().__init__()
        from transformers import SwinConfig, SwinModel  # here: importing this module stays quick

        self.model = SwinModel(SwinConfig(**sizes))
        self.projection_head = nn.Linear(self.model.config.hidden_size, D, bias=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """See Encoder.maps: one map, of projected tokens."""
        # linear without bias: projected tokens have the projected mean as their mean
        return [laid_out(self.projection_head(self.model(images).last_hidden_state))]

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.model(images).pooler_output)


class Clip(nn.Module):
    """The vision tower of CLIP by transformers: the class token, normalised and projected."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def maps(self, images: Tensor) -> list[Tensor]:
        """See Encoder.maps: one map, of normalised and projected tokens."""
        out = self.model(images, interpolate_pos_encoding=True)
        tokens = out.last_hidden_state[:, 1:]  # (B, h * w, hidden)
        tokens = self.model.vision_model.post_layernorm(tokens)
        return [laid_out(self.model.visual_projection(tokens))]

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, interpolate_pos_encoding=True).image_embeds


class Dinov2(nn.Module):
    """DINOv2 by transformers: the class token, normalised."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def maps(self, images: Tensor) -> list[Tensor]:
        """See Encoder.maps: one map, of normalised tokens."""
        return [laid_out(self.model(images).last_hidden_state[:, 1:])]

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).pooler_output


class Timm(nn.Module):
    """A network by timm without its classifier: of a vision transformer the class token, or what
    else it pools."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def maps(self, images: Tensor) -> list[Tensor]:
        """See Encoder.maps: one map, of normalised tokens or of the last convolution."""
        found = self.model.forward_features(images)
        if found.ndim == 3:  # (B, 1 + h * w, D)
            return [laid_out(found[:, self.model.num_prefix_tokens :])]
        # (B, h, w, D) of networks that have their channels last
        last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return [found.permute(0, 3, 1, 2) if last else found]

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def _found(name: str) -> tuple[weights.WeightsFile, dict[str, Tensor]]:
    """The file of an encoder and its tensors; asked for before a network is built, which may take
    seconds."""
    file = weights.find(name)
    return file, weights.read(file.path)


def _side(name: str, size: int, own: int, step: int = 1, least: int = 1) -> int:
    """The px at which an encoder reads a patch: `size`, or its own where that is 0.

    Raises ValueError for one that is no multiple of `step`, px a position, or holds fewer than
    `least` positions.
    """
    if size and (size < least * step or size % step):
        lower = max(size // step, least) * step
        raise ValueError(
            f"encoder '{name}' cannot read patches at {size} px: choose a multiple of {step}, "
            f"such as {lower} or {lower + step}, or 0 for its own size"
        )
    return size or own


def lite0(size: int) -> Encoder:
    """The embedded encoder, EfficientNet-Lite0 trained on ImageNet: maps at strides 4 to 32,
    D = 496, at the patch's own size."""
    size = _side("lite0", size, own=0)
    pyramid = backbones.backbone(backbones.LITE0, stride=32)
    net, D = PooledMaps(pyramid.net), sum(pyramid.channels[1:])
    return Encoder("lite0", net, D, pyramid.info, backbones.HALF, size)


def _swin_side(name: str, size: int, sizes: dict) -> int:
    """Swin pads what its merging of 2 x 2 does not divide: such a map would not lie on the
    image. And its deepest map holds a window, which is what its biases are of."""
    step = 4 * 2 ** (len(sizes["depths"]) - 1)
    return _side(name, size, sizes["image_size"], step, sizes["window_size"])


def medclip(size: int) -> Encoder:
    """MedCLIP-ViT as the paper names it: Swin-T and projection trained on chest X-rays, D = 512.
    Paper, Sec. 3.4."""
    size = _swin_side("medclip", size, SWIN_T)
    file, state = _found("medclip")
    net = Swin(512, **SWIN_T)
    rename = ((r"^vision_model\.", ""), *SWIN_RENAME)
    info = weights.put(net, state, file, (r"text_model\.", "logit_scale", *SWIN_IGNORE), rename)
    return Encoder("medclip", net, 512, info, XRAY, size)


def medclip_released(size: int) -> Encoder:
    """What the released code runs as MedCLIP: ImageNet's Swin-T and a random projection, seed 42,
    D = 512; item P1.

    It gets B, G, R, each image stretched to [0, 1]; the matching loss stretches its own pictures
    and uses `features` (M14). The projection comes from a generator of our own, so it depends on
    the version of torch only; it is not the authors' projection, which depended on their versions
    (P5) and which no file of theirs holds.
    """
    size = _swin_side("medclip_released", size, SWIN_T)
    file, state = _found("swin")
    net = Swin(512, **SWIN_T)
    info = weights.put(net.model, state, file, SWIN_IGNORE, SWIN_RENAME)
    draw = torch.rand(net.projection_head.weight.shape, generator=torch.Generator().manual_seed(42))
    bound = net.projection_head.in_features**-0.5  # nn.Linear's own range
    net.projection_head.weight.data = (draw * 2 - 1) * bound
    info = replace(info, missing=("projection_head.weight",))
    return Encoder("medclip_released", net, 512, info, None, size, BGR)


def swin_random(name: str, D: int, sizes: dict, size: int) -> Encoder:
    """The encoder of medclip_released without its weights: the same work, features worth nothing;
    tests and timings."""
    size = _swin_side(name, size, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        net = Swin(D, **sizes)
    info = weights.WeightsInfo(
        "random, seed 42: for tests and timings only", "", "", "", 0, ("every tensor",)
    )
    return Encoder(name, net, D, info, None, size, BGR)


def clip(name: str, size: int) -> Encoder:
    """CLIP ViT-B/32 with its projection, as published or tuned on pathology ("plip"), D = 512.
    Paper, Table 3."""
    size = _side(name, size, CLIP_B32["image_size"], CLIP_B32["patch_size"])
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
    return Encoder(name, Clip(model), CLIP_B32["projection_dim"], info, OPENAI, size)


@cache
def _tables() -> dict[str, dict]:
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text("utf-8"))


def prompts(name: str, spec: Any) -> dict[str, list[str]]:
    """What a table of prompts.toml says of each class of a data set, by the class's name.

    spec: a data.specs.DatasetSpec: its own entry where the table has one for its name, else the
    table's sentences for any class, {title} being the class's title. Raises ValueError for an
    unknown table.
    """
    if name not in _tables():
        raise ValueError(f"prompts '{name}' are not known; choose {' or '.join(_tables())}")
    table = _tables()[name]
    own = table.get(spec.name, {})
    return {
        short: own.get(short) or [said.format(title=title) for said in table["any"]]
        for short, title in zip(spec.classes, spec.titles)
    }


@torch.no_grad()
def embed_texts(name: str, texts: Sequence[str]) -> np.ndarray:
    """Texts in the joint space of CLIP or PLIP: (n, D) float32, unit rows. Radford et al., ICML
    2021.

    The text tower lies in the encoder's own file; its words are in `clip_tokenizer.json`, see
    weights.PUBLISHED. Raises ValueError for an encoder without one here or a text that is too long,
    and as weights.find and weights.put do.
    """
    if name not in TEXT:
        raise ValueError(
            f"encoder '{name}' has no text tower that protolib reads; choose {' or '.join(TEXT)}"
        )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    words = weights.find(TOKENS)
    file, state = _found(name)
    model = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_TEXT)).eval()
    ignore = (
        r"vision_model\.",
        r"visual_projection\.",
        "logit_scale",
        r"text_model\.embeddings\.position_ids",
    )
    weights.put(model, state, file, ignore)
    tokens = PreTrainedTokenizerFast(tokenizer_file=str(words.path))
    rows = []
    for text in texts:  # one at a time: none is padded
        ids = tokens(text)["input_ids"]
        if not 2 < len(ids) <= CLIP_TEXT["max_position_embeddings"]:
            raise ValueError(
                f"prompt {text!r:.60} is {len(ids)} tokens, {name} reads 3 to "
                f"{CLIP_TEXT['max_position_embeddings']}: write another one"
            )
        if (ids[0], ids[-1]) != (CLIP_TEXT["bos_token_id"], CLIP_TEXT["eos_token_id"]):
            raise ValueError(
                f"{words.path.name} is not CLIP's: a text of its begins with {ids[0]} and ends "
                f"with {ids[-1]}; bring the one that is published"
            )
        rows.append(F.normalize(model(torch.tensor([ids])).text_embeds, dim=1))
    return torch.cat(rows).numpy()


def dinov2(size: int) -> Encoder:
    """DINOv2 ViT-S/14, its class token, D = 384. Oquab et al., TMLR 2024; paper, Table 3."""
    # trained at 518 px, published with 224: the model interpolates its positions
    size = _side("dinov2", size, 224, DINOV2_S["patch_size"])
    from transformers import Dinov2Config, Dinov2Model

    file, state = _found("dinov2")
    model = Dinov2Model(Dinov2Config(**DINOV2_S))
    info = weights.put(model, state, file, rename=ATTENTION)
    return Encoder("dinov2", Dinov2(model), DINOV2_S["hidden_size"], info, backbones.IMAGENET, size)


def uni(size: int) -> Encoder:
    """UNI, a ViT-L/16 trained on pathology slides, D = 1024; gated. Chen et al., Nature
    Medicine 30, 2024."""
    size = _side("uni", size, UNI_L16["img_size"], UNI_L16["patch_size"])
    import timm

    file, state = _found("uni")
    model = timm.create_model(
        "vit_large_patch16_224", num_classes=0, dynamic_img_size=True, **UNI_L16
    )
    info = weights.put(model, state, file)
    return Encoder("uni", Timm(model), UNI_L16["embed_dim"], info, backbones.IMAGENET, size)


def by_timm(name: str, size: int) -> Encoder:
    """Any model of timm with published weights: "timm:NAME.TAG", or "timm:OWNER/NAME" for a
    repository of the hub in timm's form. Its own size, mean and std.

    Raises ValueError for one that cannot read images of that size, or whose file does not fit.
    """
    import timm

    file, state = _found(name)
    arch, args, cfg = name.removeprefix("timm:"), {}, {}
    if "/" in arch:
        config = _config(file, name)
        cfg = config.get("pretrained_cfg") or config
        arch, args = config["architecture"], dict(config.get("model_args") or {})
        if "global_pool" in config:
            args.setdefault("global_pool", config["global_pool"])
    elif timm.is_model(arch):
        cfg = timm.get_pretrained_cfg(arch).to_dict()
    else:
        raise ValueError(f"encoder '{name}': timm {timm.__version__} has no model {arch}")
    if lacking := {"input_size", "mean", "std"} - cfg.keys():
        raise ValueError(f"encoder '{name}': its config.json does not tell {', '.join(lacking)}")
    size = _side(name, size, cfg["input_size"][-1])
    for more in ({"dynamic_img_size": True}, {"img_size": size}, {}):
        try:
            model = timm.create_model(arch, pretrained=False, num_classes=0, **args | more)
            break
        except TypeError as error:  # it has no such option
            refused = error
    else:
        raise ValueError(f"encoder '{name}': timm cannot build {arch} so ({refused})")
    heads = cfg.get("classifier") or ()
    ignore = [rf"{re.escape(head)}\." for head in ([heads] if isinstance(heads, str) else heads)]
    info = weights.put(model, state, file, ignore)
    # what attention pools has no maps in the space of its features, see Conch
    net = model if getattr(model, "attn_pool", None) is not None else Timm(model)
    scaling = tuple(cfg["mean"]), tuple(cfg["std"])
    return Encoder(name, net, _width(name, model, size), info, scaling, size)


def _config(file: weights.WeightsFile, name: str, part: str = "config.json") -> dict:
    """A JSON file of an encoder's repository. Raises FileNotFoundError where it is not there."""
    path = weights.beside(file, name, part)
    if path is None:
        raise FileNotFoundError(
            f"encoder '{name}' needs the {part} of its repository beside {file.path}: bring it too"
        )
    return read_json(path)


def _width(name: str, net: Any, size: int) -> int:
    """The width of a network's features, by one image. Raises ValueError if it cannot read it."""
    with torch.no_grad():
        try:
            found = net.eval()(torch.zeros(1, 3, size, size))
        except Exception as error:  # a network of others fails in ways of its own
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"encoder '{name}' cannot read images of {size} px ({told})"
            ) from error
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise ValueError(f"encoder '{name}' gives no features (B, D) of images")
    return found.shape[1]


class Hf(nn.Module):
    """A vision transformer by transformers: the class token behind the last norm."""

    def __init__(self, model: Any, patch: int):
        super().__init__()
        self.model, self.patch = model, patch
        asked = inspect.signature(model.forward).parameters
        # those with learned positions read other sizes so; the others always do
        self.more = {key: True for key in ("interpolate_pos_encoding",) if key in asked}

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, 1 + registers + h * w, D); raises ValueError where there is no class token."""
        found = self.model(pixel_values=images, **self.more).last_hidden_state
        places = (images.shape[2] // self.patch) * (images.shape[3] // self.patch)
        if found.ndim != 3 or found.shape[1] <= places:
            raise ValueError(
                f"{type(self.model).__name__} gives {tuple(found.shape)} for {places} positions: "
                "no class token"
            )
        return found

    def maps(self, images: Tensor) -> list[Tensor]:
        """See Encoder.maps: one map, of normalised tokens."""
        places = (images.shape[2] // self.patch) * (images.shape[3] // self.patch)
        return [laid_out(self.tokens(images)[:, -places:])]

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images)[:, 0]


def by_transformers(name: str, size: int) -> Encoder:
    """Any vision transformer of the hub that transformers can build: "hf:OWNER/NAME". Its own size,
    mean and std.

    The code of a repository is run only where TRUST is set, by `--trust-remote-code`. Raises
    PermissionError without it, ValueError for a network of another kind or a file that lacks some
    of its tensors.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file = weights.find(name)
    said, folder = _config(file, name), file.path.parent
    scale = _config(file, name, "preprocessor_config.json")
    foreign = "auto_map" in said and said.get("model_type") not in CONFIG_MAPPING
    if foreign and not os.environ.get(TRUST):
        raise PermissionError(
            f"encoder '{name}' runs code of its repository, which may do anything on this machine: "
            f"read it in {folder}, then give --trust-remote-code (or set {TRUST}=1)"
        )
    if foreign:
        weights.code_beside(file, name)
    how = {"local_files_only": True, "trust_remote_code": foreign}
    if untold := {"image_mean", "image_std"} - scale.keys():
        raise ValueError(f"encoder '{name}': its preprocessor_config.json lacks {min(untold)}")
    config = AutoConfig.from_pretrained(folder, **how)
    if not isinstance(patch := getattr(config, "patch_size", None), int):
        raise ValueError(
            f"encoder '{name}' is a {config.model_type}: of these vision transformers with one "
            "class token are read; look for it in timm"
        )
    crop = scale.get("crop_size") or scale.get("size") or config.image_size
    own = crop if isinstance(crop, int) else crop.get("height") or crop["shortest_edge"]
    size = _side(name, size, own, patch)
    model, loaded = AutoModel.from_pretrained(
        folder, config=config, output_loading_info=True, dtype=torch.float32, **how
    )
    # a pooler that the file has not would be random: features go by it
    lacking = [key for key in loaded["missing_keys"] if "pooler." not in key]
    state = model.state_dict()
    odd = [key for key, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if lacking or loaded["mismatched_keys"] or odd:
        raise ValueError(
            f"{file.path.name} does not fit {type(model).__name__}: missing {lacking[:3]}, of "
            f"another shape {list(loaded['mismatched_keys'])[:3]}, not finite {odd[:3]}. Bring the "
            "file that is published for it"
        )
    info = weights.WeightsInfo(
        *(file.source, file.revision, weights.sha256(file.path), file.licence, len(state)),
        missing=tuple(sorted(loaded["missing_keys"])),
        ignored=tuple(sorted(loaded["unexpected_keys"])),
    )
    net, scaling = Hf(model, patch), (tuple(scale["image_mean"]), tuple(scale["image_std"]))
    return Encoder(name, net, _width(name, net, size), info, scaling, size)


class Conch(nn.Module):
    """The vision tower of CONCH, contrastive embedding: attention pools it, so it has no maps."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)[0]  # (embedding, tokens)


def conch(size: int) -> Encoder:
    """CONCH, ViT-B/16 trained on pathology images and captions, D = 512; gated. Lu et al., Nature
    Medicine 30, 2024.

    Its contrastive embedding, from 448 px. Raises ImportError that says how to get its package.
    """
    try:
        from conch.open_clip_custom.coca_model import CoCa
        from conch.open_clip_custom.factory import CFG_DIR
    except ImportError as error:
        raise ImportError(
            "encoder 'conch' needs the package of its authors: "
            "pip install git+https://github.com/mahmoodlab/CONCH.git"
        ) from error
    config = json.loads((CFG_DIR / "conch_ViT-B-16.json").read_text("utf-8"))
    config.pop("custom_text", None)
    # its positions are fixed: no other size fits them
    own = config["vision_cfg"]["image_size"]
    size = _side("conch", size, own, own)
    file, state = _found("conch")
    visual = CoCa(**config).visual  # their loader would leave out what does not fit
    info = weights.put(visual, state, file, ("text", "logit_scale"), ((r"^visual\.", ""),))
    return Encoder("conch", Conch(visual), config["embed_dim"], info, OPENAI, size)


ENCODERS: dict[str, Callable[[int], Encoder]] = {
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


LOADERS = {"timm": by_timm, "hf": by_transformers}


def _known(name: str) -> Callable[[int], Encoder]:
    if name in ENCODERS:
        return ENCODERS[name]
    known = published(name)
    if known and ":" in name:
        return partial(LOADERS[name.partition(":")[0]], name)
    if known and known.D:
        raise ValueError(
            f"encoder '{name}' ({known.repo}) is not built here, for it wants {known.loader}: take "
            "one that `python -m protolib doctor` lists as built"
        )
    raise ValueError(
        f"encoder '{name}' is not known; choose one of {', '.join(ENCODERS)}, timm:NAME.TAG, "
        "timm:OWNER/NAME or hf:OWNER/NAME"
    )


def load(name: str, size: int = 0) -> Encoder:
    """The frozen encoder of that name; raises ValueError that lists the known ones. Notebook 02.

    size: px at which it reads a patch; 0 = its own published size, or for lite0 the patch's. Raises
    ValueError for one that its positions do not divide, and as `weights.find`, `weights.read` and
    `weights.put` where its weights cannot be had or are not its own.
    """
    return _known(name)(size)


def identity(name: str) -> str:
    """What identifies the weights of an encoder, as `weights.identity` says: a SHA-256 (hex) or
    "random"; no network is built.

    Raises ValueError for an unknown name, or if the embedded weights are not the recorded ones.
    """
    if name == TOKENS:
        return weights.identity(name)
    _known(name)
    if name == "lite0":
        return backbones.identity(backbones.LITE0)
    found = weights.identity("swin" if name == "medclip_released" else name)
    if ":" not in name or found == "random":
        return found
    # its network and scaling are told by files beside the weights
    file = weights.find(name)
    parts = [weights.beside(file, name, part) for part in REPOSITORY]
    parts += sorted(file.path.parent.glob("*.py"))
    return digest(found, [part.read_text("utf-8") for part in parts if part])


@torch.no_grad()
def embed(encoder: Encoder, dataset, batch: int = 64, pooled: bool = False) -> np.ndarray:
    """Features (n, D) float32 of every patch of a data set, in its order, on the encoder's
    device. Notebook 02.

    pooled: the mean of the maps instead, `Encoder.pooled`: a bank for masked pooling must stand in
    the space in which its loss compares.
    """
    device = next(encoder.parameters()).device
    rows = []
    for part in tqdm(DataLoader(dataset, batch_size=batch), "embed", leave=False):
        images = part["image"].to(device).float() / 255  # (B, 3, H, W)
        features = encoder.pooled(encoder.maps(images)) if pooled else encoder(images)
        rows.append(features.cpu())
    return torch.cat(rows).numpy()  # (n, D)
