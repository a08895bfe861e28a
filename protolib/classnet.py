"""ClassNet: a backbone's pyramid compared with projected prototypes gives one similarity map per
sub-class and level."""

import torch
from torch import Tensor, nn

from protolib.maps import cosine_maps, merge_subclasses
from protolib.nets.backbones import backbone
from protolib.presets import Preset


class PrototypeHead(nn.Module):
    """Maps of one level: project the prototypes to the level's width, compare them with every
    position. Eq. (2).

    features (B, C_i, h, w), prototypes (S, D) unit rows -> (B, S, h, w) logits, the similarities
    times a scale (the released code learns one, the paper has none: a cosine alone keeps the
    sigmoid of Eq. (7) between .27 and .73).
    """

    def __init__(self, D: int, channels: int, p: Preset):
        super().__init__()
        hidden = p.hidden or channels  # 0: no width to choose
        self.similarity = p.similarity
        self.project = nn.Sequential(nn.Linear(D, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        # learned as its logarithm: a scale must stay above 0
        scale = torch.tensor(p.scale).log()
        self.log_scale = nn.Parameter(scale, requires_grad=p.scale_learned)

    def forward(self, features: Tensor, prototypes: Tensor) -> Tensor:
        projected = self.project(prototypes)  # (S, C_i)
        return self.log_scale.exp() * cosine_maps(features, projected, self.similarity)


class Gates(nn.Module):
    """A level's features, its channels weighed by what the deepest level says of the whole image,
    and its positions smoothed: F + g1 w F + g2 s. SSHR, 2026 (arXiv 2606.20250).

    w = sigmoid(MLP(GAP(deepest))) in (0, 1), one weight a channel, 4096 -> 512 -> C_i for their
    ResNet-38 and an eighth of the deepest width for others (ours); s: F behind a depthwise 15x15
    filter that starts as the mean, what lies outside the map being 0. g1 = g2 = 0 at first: the
    module begins as if it were not there. deepest (B, C_L, h_L, w_L), features (B, C_i, h_i, w_i)
    -> (B, C_i, h_i, w_i).
    """

    SIDE = 15

    def __init__(self, channels: int, deepest: int):
        super().__init__()
        hidden = max(deepest // 8, 1)
        self.weigh = nn.Sequential(
            nn.Linear(deepest, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
        )
        self.smooth = nn.Conv2d(
            channels, channels, self.SIDE, padding=self.SIDE // 2, groups=channels, bias=False
        )
        nn.init.constant_(self.smooth.weight, 1 / self.SIDE**2)
        self.g1, self.g2 = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, deepest: Tensor) -> Tensor:
        w = self.weigh(deepest.mean((2, 3))).sigmoid()[:, :, None, None]  # (B, C_i, 1, 1)
        return features + self.g1 * w * features + self.g2 * self.smooth(features)


class ClassNet(nn.Module):
    """Similarity maps of an image at L levels. Sec. 3.3, notebook 04.

    images (B, 3, H, W) float in [0, 1] -> list of L logit maps (B, S, h_i, w_i), finest first.
    prototypes: (S, D) unit rows, fixed, or learned where p.prototypes is "learnable". With
    prototypes None each level of p.levels has a 1x1 convolution instead, K is 1 and S is C: the
    classifier of CAM, and Table 5 without SIM. Raises ValueError for levels that the backbone does
    not have.
    """

    def __init__(self, p: Preset, C: int, prototypes: Tensor | None = None):
        super().__init__()
        # nothing deeper than the deepest level is built: it would be computed for nobody
        self.net = backbone(p.backbone, p.stride, p.levels)
        if p.scaling:
            # released_code has its own, in B, G, R
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in p.scaling)
            self.net.mean, self.net.std = mean, std
        if max(p.levels) >= len(self.net.channels):
            raise ValueError(
                f"backbone '{p.backbone}' has levels 0 to {len(self.net.channels) - 1} at "
                f"{self.net.strides} px per position, preset '{p.name}' asks for {p.levels}: "
                "choose a preset made for it, such as paper_text for mit_b1"
            )
        self.levels, self.pool, self.order = p.levels, p.pool, p.order
        widths = [self.net.channels[i] for i in p.levels]
        if prototypes is None:
            # a 1x1 convolution has one map a class, and no sub-classes
            self.prototypes, self.sizes = None, (1,) * C
            self.heads = nn.ModuleList(nn.Conv2d(width, C, 1) for width in widths)
        else:
            self.prototypes = nn.Parameter(prototypes, requires_grad=p.prototypes == "learnable")
            self.sizes = (len(prototypes) // C,) * C
            D = prototypes.shape[1]
            self.heads = nn.ModuleList(PrototypeHead(D, width, p) for width in widths)
        if p.refine == "gates":
            self.gates = nn.ModuleList(Gates(width, widths[-1]) for width in widths)
        else:
            self.gates = None
        # where "present" begins
        self.bias = nn.Parameter(torch.zeros(len(p.levels), C), requires_grad=p.bias)

    def prepare(self, images: Tensor) -> Tensor:
        """Images in the order of colours and the scale that the backbone was trained on, same
        shape. Notebooks 03 and 06."""
        return self.net.prepare(images.flip(1) if self.order == "bgr" else images)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.read(self.prepare(images))

    def read(self, prepared: Tensor) -> list[Tensor]:
        """The maps of prepared images: what forward does after prepare. Notebook 06."""
        return self.compare(self.features(prepared))

    def features(self, prepared: Tensor) -> list[Tensor]:
        """What is compared with the prototypes: L maps (B, C_i, h_i, w_i), finest first, of
        prepared images."""
        pyramid = self.net.pyramid(prepared)
        levels = [pyramid[i] for i in self.levels]
        if self.gates is None:
            return levels
        return [gate(level, levels[-1]) for level, gate in zip(levels, self.gates)]

    def compare(self, features: list[Tensor]) -> list[Tensor]:
        """L maps (B, S, h_i, w_i) of the features of L levels. Eq. (2)."""
        prompts = () if self.prototypes is None else (self.prototypes,)
        return [head(level, *prompts) for level, head in zip(features, self.heads)]

    def class_maps(self, maps: list[Tensor], merge: str) -> list[Tensor]:
        """Sub-classes merged at every level: L maps (B, S, h_i, w_i) -> L maps (B, C, h_i, w_i).
        Eq. (2), notebook 04.

        merge: how, see maps.merge_subclasses: p.merge when training, p.merge_test when predicting.
        """
        return [merge_subclasses(m, self.sizes, merge) for m in maps]

    def logits(self, maps: list[Tensor], merge: str) -> Tensor:
        """Image-level logits of each level: (L, B, C), the pooled maps GAP(M_i) plus a bias.
        Eq. (7), notebook 04.

        maps: L maps (B, S, h_i, w_i). pool "maps": merged, then averaged over positions; "logits":
        the other way round.
        """
        if self.pool == "maps":
            pooled = [m.mean((2, 3)) for m in self.class_maps(maps, merge)]  # L of (B, C)
        else:
            pooled = self.class_maps([m.mean((2, 3)) for m in maps], merge)
        return torch.stack(pooled) + self.bias[:, None]  # (L, B, C) + (L, 1, C)
