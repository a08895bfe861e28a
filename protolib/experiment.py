"""One run of the story: each step loads what the run's folder holds for the same settings, data and
code, or makes it."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from protolib import __version__, bank, cams, metrics, presets, results, segmentation, training
from protolib.classnet import ClassNet
from protolib.data import specs
from protolib.data.patches import PatchDataset, load
from protolib.files import read_json, write_json, write_npz
from protolib.losses import cam_loss, lpd_loss, pbip_loss
from protolib.maps import argmax_masks
from protolib.nets import encoders

STAGE1 = ("cam", "prototypes", "pbip_stage1")
LEARNED_WIDTH = 512  # of prototypes that are learned: the width of the paper's, from MedCLIP
HERE = Path(__file__).parent
CODE = hashlib.sha256(
    b"".join(
        path.read_bytes()
        for path in sorted([*HERE.glob("*.py"), *HERE.glob("data/*.py"), *HERE.glob("nets/*.py")])
    )
).hexdigest()


class Run:
    """A preset on a data set with a seed, in a folder of its own: what every notebook opens first.
    Notebook 00.

    encoder, backbone, K: replace the preset's where given; settings: so does any field of it.
    cache: of decoded patches, the folder's own where none is given. retrain: forget what the folder
    holds. Steps are made when asked for and their order does not matter: scores("pbip_stage2")
    alone makes all that it rests on.
    """

    def __init__(
        self,
        preset="quick",
        dataset="phantom",
        data_root="",
        run_dir="../runs/notebooks",
        seed=0,
        device="auto",
        encoder="",
        backbone="",
        K=0,
        retrain=False,
        settings=MappingProxyType({}),
        cache="",
    ):
        given = {k: v for k, v in (("encoder", encoder), ("backbone", backbone), ("K", K)) if v}
        self.preset = presets.changed(presets.preset(preset), given | dict(settings))
        self.dataset, self.data_root, self.seed = dataset, str(data_root), seed
        self.folder, self.cache = Path(run_dir), Path(cache or Path(run_dir, "cache"))
        self.device = (
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        if self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)  # accelerate trains on the current one
        self.spec = specs.spec_of(dataset, data_root)
        self._splits, self._nets, self._histories, self._masks = {}, {}, {}, {}
        if retrain:
            for step in ("bank", "pseudo_masks", *results.METHODS):
                shutil.rmtree(self.folder / step, ignore_errors=True)

    def data(self, split: str) -> PatchDataset:
        """The patches of "train", "val" or "test" at the preset's size. Notebook 01."""
        if split not in self._splits:
            n = dict(zip(specs.SPLITS, self.preset.patches))[split]
            self._splits[split] = load(
                self.dataset,
                split,
                self.preset.size,
                data_root=self.data_root,
                cache=self.cache,
                seed=self.seed,
                patches=n,
            )
        return self._splits[split]

    @cached_property
    def key(self) -> str:
        """Hash of settings, seed, training pixels and kernel sources: a step made under another key
        is made again."""
        said = [asdict(self.preset), self.seed, self.data("train").fingerprint, CODE]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def made(self, step: str) -> bool:
        """Whether the folder holds this step for the same key, with what it rests on."""
        file = self.folder / step / "key.json"
        return file.exists() and read_json(file)["key"] == self.key

    def _done(self, step: str, began: float) -> None:
        write_json(
            self.folder / step / "key.json",
            {"key": self.key, "seconds": time.perf_counter() - began},
        )

    @cached_property
    def encoder(self) -> encoders.Encoder:
        """The frozen encoder on the run's device. Notebook 02."""
        return encoders.load(self.preset.encoder).to(self.device)

    @cached_property
    def bank(self) -> bank.Bank:
        """The image bank of the training split. Notebook 02."""
        folder, p = self.folder / "bank", self.preset
        if not self.made("bank"):
            began, train = time.perf_counter(), self.data("train")
            features = encoders.embed(self.encoder, train)
            other = None
            if p.cluster_encoder:
                other = encoders.embed(encoders.load(p.cluster_encoder).to(self.device), train)
            made = bank.build(train, features, p, self.seed, other)
            made.save(folder)
            write_npz(folder / "features.npz", features=features)
            self._done("bank", began)
        return bank.Bank.open(folder)

    @cached_property
    def features(self) -> np.ndarray:
        """Encoder features (n, D) float32 of the training patches, as the bank was built from.
        Notebook 02."""
        _ = self.bank  # made with it
        with np.load(self.folder / "bank" / "features.npz") as file:
            return file["features"]

    def net(
        self, method: str, on_epoch: Callable[[pd.DataFrame], None] | None = None
    ) -> torch.nn.Module:
        """The trained network of a method of results.METHODS, in evaluation mode. Notebooks 04 and
        05."""
        if method not in self._nets:
            train = self._stage1 if method in STAGE1 else self._stage2
            self._nets[method], self._histories[method] = train(method, on_epoch)
        return self._nets[method].eval()

    def history(self, method: str) -> pd.DataFrame:
        """Losses and seconds of each epoch of a method. Notebook 04."""
        self.net(method)
        return self._histories[method]

    def _stage1(self, method: str, on_epoch):
        p, C = self.preset, self.spec.C
        if method == "cam":
            one = (1.0,) * len(p.cam_levels)
            p = replace(
                p,
                levels=p.cam_levels,
                fusion=p.cam_fusion,
                level_weights=one,
                similarity="convolution",
                pairs="classes",
            )
        torch.manual_seed(self.seed)
        prompts = None if p.similarity == "convolution" else self._prompts()
        net, loss = ClassNet(p, C, prompts), partial(cam_loss, preset=p)
        if method == "pbip_stage1" and p.prototypes == "learnable":
            loss = partial(lpd_loss, preset=p)
        elif method == "pbip_stage1":
            loss = partial(pbip_loss, preset=p, bank=self.bank, encoder=self.encoder)
        rate = dict(lr=p.lr, lr_power=p.lr_power, warmup=p.warmup, warmup_ratio=p.warmup_ratio)
        return net, self._fit(
            net,
            self.data("train"),
            loss,
            method,
            on_epoch,
            epochs=p.epochs,
            watch=self._on_val,
            **rate,
        )

    def _on_val(self, net: ClassNet) -> dict[str, float]:
        """IoU of each class on val under predicted labels, for the history: nothing is chosen by
        it."""
        p, truth = self.preset, np.asarray(self.data("val").masks)
        batches = (
            (i, maps, logits > 0)
            for i, maps, logits in cams.predict_split(net, self.data("val"), p, p.tta, bar=False)
        )
        matrix = metrics.confusion(truth, self._masks_of(batches, "val")["predicted"], self.spec.C)
        return {
            f"IoU {c}": iou
            for c, iou in zip(self.spec.classes, metrics.scores(matrix, p.ignore)["iou"])
        }

    def _prompts(self) -> Tensor:
        """Prototypes (S, D), unit rows: the bank's, or random directions to learn from where the
        preset learns them."""
        if self.preset.prototypes != "learnable":
            return torch.from_numpy(self.bank.prototypes)
        return F.normalize(torch.randn(self.spec.C * self.preset.K, LEARNED_WIDTH), dim=1)

    def _stage2(self, method: str, on_epoch):
        p = self.preset
        patches = self.pseudo_masks() if method == "pbip_stage2" else self.masked_split()
        torch.manual_seed(self.seed)
        net = segmentation.DeepLabV2(
            p.stage2_backbone or p.backbone,
            p.stage2_stride,
            self.spec.C,
            p.stage2_rates,
            p.stage2_size / p.size,
        )
        loss = segmentation.segmentation_loss
        return net, self._fit(
            net, patches, loss, method, on_epoch, epochs=p.stage2_epochs, lr=p.stage2_lr
        )

    def _fit(self, net, patches, loss, method, on_epoch, **schedule) -> pd.DataFrame:
        return training.fit(
            net,
            patches,
            loss,
            self.folder / method,
            batch=self.preset.batch,
            weight_decay=self.preset.weight_decay,
            seed=self.seed,
            key=f"{self.key} {method}",
            device=self.device,
            on_epoch=on_epoch,
            **schedule,
        )

    def pseudo_masks(self) -> segmentation.MaskedPatches:
        """The training patches with the masks that PBIP stage 1 gives them. Notebook 05."""
        folder, train, p = self.folder / "pseudo_masks", self.data("train"), self.preset
        if not self.made("pseudo_masks"):
            net, began = self.net("pbip_stage1"), time.perf_counter()
            made_from = {"preset": p.name, "seed": self.seed, "key": self.key}
            cams.pseudo_masks(net, train, folder, p, made_from)
            self._done("pseudo_masks", began)
        return segmentation.MaskedPatches(train, cams.read_pseudo_masks(folder, train))

    def masked_split(self) -> segmentation.MaskedPatches:
        """What full supervision trains on: the training split, or val where training masks are not
        published. Notebook 05."""
        split = next(s for s in ("train", "val") if self.data(s).masks is not None)
        return segmentation.MaskedPatches(self.data(split), np.array(self.data(split).masks))

    def predictions(self, method: str, split: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield index (B,), class scores (B, C, H, W) and predicted image labels (B, C) bool over a
        split. Notebook 06."""
        net, p = self.net(method), self.preset
        if method in STAGE1:
            for index, maps, logits in cams.predict_split(net, self.data(split), p, p.tta):
                yield index, maps, logits > 0
        else:
            for items in DataLoader(self.data(split), batch_size=32):
                scores = segmentation.predict(
                    net, items["image"].to(self.device).float() / 255, p.stage2_tta
                ).cpu()
                yield items["index"], scores, segmentation.present_classes(scores)

    def masks(self, method: str, split: str, image_labels: str = "predicted") -> np.ndarray:
        """Predicted masks (n, Hm, Wm) uint8 at the size of the true ones, under the given image
        labels. Notebook 05."""
        if (method, split) not in self._masks:  # one pass of the network for all three
            self._masks[method, split] = self._masks_of(self.predictions(method, split), split)
        return self._masks[method, split][image_labels]

    def _masks_of(self, predictions: Iterator, split: str) -> dict[str, np.ndarray]:
        truth = self.data(split)
        parts = {"predicted": [], "oracle": [], "none": []}
        for index, scores, predicted in predictions:
            oracle = torch.from_numpy(truth.labels[index.numpy()])
            scores = F.interpolate(
                scores, truth.masks.shape[1:], mode="bilinear", align_corners=False
            )
            for name, labels in zip(parts, (predicted, oracle, torch.ones_like(predicted))):
                parts[name].append(argmax_masks(scores, labels, self.preset.gating))
        return {name: torch.cat(masks).numpy() for name, masks in parts.items()}

    @property
    def protocol(self) -> metrics.Protocol:
        """The protocol of the preset: the one to compare with its source. Notebook 06."""
        return metrics.Protocol(self.preset.image_labels, self.preset.ignore)

    def scores(
        self, method: str, split: str = "test", protocol: metrics.Protocol | None = None
    ) -> dict:
        """Scores of a method on a split, as metrics.Scorer gives them. Notebook 06.

        protocol: predicted labels and the preset's rule for ignore, where none is given.
        """
        protocol = protocol or metrics.Protocol(ignore=self.preset.ignore)
        file = (
            self.folder / method / f"scores_{split}_{protocol.image_labels}_{protocol.ignore}.json"
        )
        if not file.exists() or read_json(file)["key"] != self.key:
            scorer = metrics.Scorer(self.spec.C, protocol)
            scorer.update(
                np.asarray(self.data(split).masks), self.masks(method, split, protocol.image_labels)
            )
            write_json(file, {"key": self.key, "scores": scorer.result()})
        return read_json(file)["scores"]

    def slide_counts(
        self, method: str, split: str = "test", image_labels: str = "predicted"
    ) -> dict[str, np.ndarray]:
        """The confusion matrix (C+1, C+1) of each slide of a split: what differences are tested on.
        Notebook 07.

        A patch whose name does not tell its slide is one by itself.
        """
        patches, masks = self.data(split), self.masks(method, split, image_labels)
        slides = np.array([slide or name for slide, name in zip(patches.slides, patches.ids)])
        truth = np.asarray(patches.masks)
        return {
            s: metrics.confusion(truth[slides == s], masks[slides == s], self.spec.C)
            for s in sorted(set(slides))
        }

    def zero_shot(self, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """Main class of each patch by its mask, and the class of its nearest prototype, (n,) each.
        Table 6, notebook 07.

        The paper does not say how it turns similarities into classes: this is ours. A patch of
        ignore alone is left out.
        """
        patches, C = self.data(split), self.spec.C
        area = np.stack(
            [(np.asarray(patches.masks) == c).sum((1, 2)) for c in range(C)], axis=1
        )  # (n, C) px
        features = self.bank.normalize(encoders.embed(self.encoder, patches))  # (n, D) unit rows
        nearest = (features @ self.bank.prototypes.T).argmax(1) // self.preset.K
        return area.argmax(1)[area.any(1)], nearest[area.any(1)]

    def record(self, methods: tuple[str, ...] = tuple(results.METHODS)) -> dict:
        """The run's results.json on the test split, written and returned: see results.record.
        Notebook 06."""
        oracle = metrics.Protocol("oracle", self.preset.ignore)
        scored = {m: self.scores(m) | {"oracle": self.scores(m, protocol=oracle)} for m in methods}
        made = results.record(
            preset=self.preset.name,
            dataset=self.dataset,
            seed=self.seed,
            device=str(self.device),
            protolib=__version__,
            methods=scored,
            peak_rss_mb=results.peak_rss_mb(),
            seconds={m: float(self.history(m)["seconds"].sum()) for m in methods},
        )
        write_json(self.folder / "results.json", made)
        return made
