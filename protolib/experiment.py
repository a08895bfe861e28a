"""One run of the story: each step loads what the run's folder holds under the step's own key, or
makes it.

A step's key is a hash of all that the step reads: its fields of the preset, the pixels, labels and
masks of its splits, the weights of its networks, the code that it runs, the seed, and the keys of
the steps that it rests on. Another value of any of them is another key, and a step under another
key is made again; what a step does not read leaves it as it is.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from protolib import (
    __version__,
    bank,
    cams,
    losses,
    metrics,
    presets,
    processes,
    results,
    segmentation,
    windows,
)
from protolib.classnet import ClassNet
from protolib.data import patches, specs
from protolib.data.phantom import Drawing
from protolib.files import place, read_json, read_npz, write_json, write_npz
from protolib.keys import CODE, digest
from protolib.maps import argmax_masks, closed
from protolib.matching import nearest_classes
from protolib.nets import backbones, encoders
from protolib.presets import Preset
from protolib.training import Place, finished, fit, seed_of, set_up

STAGE1 = ("cam", "prototypes", "pbip_masked_image", "pbip_stage1")
STAGE2 = ("pbip_stage2", "full_supervision")
LABELS = ("predicted", "oracle", "none")  # whose image labels close absent classes
LEARNED_WIDTH = 512  # of prototypes that are learned: the width of the paper's, from MedCLIP
EMBEDDED = 64  # patches that an encoder sees at once
POSITION = 8  # px of a patch to a position of the nearest-prototype maps

# the fields of a preset that each step reads; tests/test_stale.py holds that they are these
READS = {
    step: frozenset(fields.split())
    for step, fields in {
        "features": "encoder encoder_size",
        "bank": "cluster_encoder K N prototypes single_class white_limit normalise shrinkage "
        "kmeans_start restarts text_share",
        "network": "order scaling backbone stride bias merge pool "
        "epochs batch lr lr_power warmup warmup_ratio weight_decay precision stain_jitter",
        "levels": "levels level_weights similarity refine",
        "prototypes": "prototypes K hidden scale scale_learned",
        "matching": "look space match_maps pairs span threshold delta fill negatives pooling tau "
        "alpha beta enough theta_fg theta_bg penalty chunk align_corners fusion",
        "diversity": "diversity diversity_after beta",
        "maps": "merge_test pool scores align_corners diffusion",
        "masks": "gating align_corners",
        "stage 2": "backbone stage2_backbone stage2_epochs stage2_lr stage2_stride stage2_rates "
        "stage2_size size batch weight_decay precision",
    }.items()
}


def device_of(name: str) -> str:
    """The device that a name stands for; "auto": a CUDA GPU, else Apple's, else the CPU.
    Notebook 04.

    Raises ValueError for a device that is not here, naming those that are.
    """
    here = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    here.append("cpu")
    if name == "auto":
        return here[0]
    kind, _, number = name.partition(":")
    known = kind in here and (not number or kind == "cuda" and number.isdigit())
    if not known or (number and int(number) >= torch.cuda.device_count()):
        raise ValueError(f"device '{name}' is not here; choose auto or one of {', '.join(here)}")
    return name


def plain(p: Preset) -> bool:
    """Whether stage 1 has no prototypes at all: 1x1 convolutions, and nothing is matched."""
    return p.similarity == "convolution" and not p.beta


class Run:
    """A preset on a data set with a seed, in a folder of its own: what every notebook opens first.
    Notebook 00.

    p: a preset or its name. cache: of decoded patches and encoder features, which other runs may
    share; the folder's own where none is given. Steps are made when asked for and their order does
    not matter: scores("pbip_stage2") alone makes all that it rests on, and every draw comes from
    the seed and its purpose. `processes`, 1 unless PROTOLIB_PROCESSES says otherwise, may be set:
    so many processes train, embed and predict together, each on its own GPU if there are any.
    Raises ValueError for a device or a seed that cannot be.
    """

    def __init__(
        self,
        p: Preset | str = "quick",
        dataset: str = "phantom",
        data_root: str | Path = "",
        run_dir: str | Path = "../runs/notebooks",
        seed: int = 0,
        device: str = "auto",
        cache: str | Path = "",
    ):
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed = {seed!r}; give a whole number from 0 on")
        self.preset = presets.preset(p) if isinstance(p, str) else p
        self.dataset, self.seed = dataset, seed
        self.data_root = str(data_root) and str(place(data_root))
        self.folder = place(run_dir)
        self.cache = Path(cache or self.folder / "cache")
        self.processes = processes.asked()
        self.device = processes.join(device_of(device))
        if self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)  # accelerate trains on the current one
        set_up(self.device.partition(":")[0], self.preset)
        self.spec = specs.spec_of(dataset, self.data_root)
        self._splits, self._nets, self._histories = {}, {}, {}
        self._blank = False  # True: keys without data and seed, see base

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of results.METHODS that this run compares: without those that would be
        another one again, or that have no bank. Notebook 05."""
        p, left = self.preset, set()
        if p.prototypes == "learnable" or plain(p):
            left |= {"nearest_prototype", "pbip_masked_image"}
        if p.look == "masked_image":
            left |= {"pbip_masked_image"}
        if plain(p):
            left |= {"prototypes"}
        return tuple(method for method in results.METHODS if method not in left)

    @property
    def titles(self) -> dict[str, str]:
        """What each method that this run compares is called. Notebook 04."""
        named = {method: results.METHODS[method] for method in self.methods}
        if self.preset.prototypes == "learnable":
            named["pbip_stage1"] = "Learned prototypes, LPD"
        elif plain(self.preset):
            gates = self.preset.refine == "gates"
            named["pbip_stage1"] = "1x1 convolutions" + " behind SSHR's gates" * gates
        return named

    def variant(self, p: Preset, run_dir: str | Path) -> "Run":
        """The same data, seed and device under another preset, in a folder of its
        own. Notebooks 00, 01, 02, 03, 04, 05 and 06."""
        other = Run(p, self.dataset, self.data_root, run_dir, self.seed, self.device, self.cache)
        if other.drawn == self.drawn:
            other._splits = self._splits  # opened once
        other.processes = self.processes
        return other

    @cached_property
    def masked_images(self) -> "Run":
        """The same run with the paper's matching loss on masked images: what "pbip_masked_image"
        is. Notebook 04."""
        p = presets.with_masked_images(self.preset)
        return self.variant(p, self.folder / "pbip_masked_image")

    def _together(self, step: str, *given: str) -> None:
        """Have several processes make a step, where the run has them and is none of them; what they
        leave in its folder is found there."""
        if self.processes == 1 or processes.count() > 1:
            return
        for split in specs.SPLITS:
            self.data(split)  # decoded once, not by each of them
        kind = self.device.partition(":")[0]
        room = {"cpu": self.processes, "cuda": torch.cuda.device_count()}.get(kind, 1)
        if self.processes > room:
            raise ValueError(
                f"{self.processes} processes need CUDA GPUs of their own, or a CPU; here is room "
                f"for {room} on {kind}"
            )
        own = self.preset, self.dataset, self.data_root, self.folder, self.seed, kind, self.cache
        processes.start(self.processes, _step, own, step, given)

    def forget(self, really: bool = False) -> None:
        """Delete every step that the folder holds, if it is True, not false, "no" or "0"; the cache
        stays. Notebook 04.

        Raises ValueError for what is neither True nor False, before anything is deleted.
        """
        if not isinstance(really, bool):
            raise ValueError(f"retrain = {really!r}; give True or False: True deletes networks")
        if not really:
            return
        for step in ("bank", "pseudo_masks", *results.METHODS):
            shutil.rmtree(self.folder / step, ignore_errors=True)
        self.__dict__.pop("bank", None)
        self._nets, self._histories = {}, {}

    def data(self, split: str) -> patches.PatchDataset:
        """The patches of "train", "val" or "test" at the preset's size. Notebook 01."""
        if split not in self._splits:
            n = dict(zip(specs.SPLITS, self.preset.patches))[split]
            self._splits[split] = patches.load(
                self.dataset,
                split,
                self.preset.size,
                cache=self.cache,
                data_root=self.data_root,
                drawing=Drawing(n, self.seed, *self.drawn[2:]),
            )
        return self._splits[split]

    @property
    def drawn(self) -> tuple:
        """What is asked of the data: size and number of patches, and the dials of a drawing."""
        p = self.preset
        dials = p.drawn_heterogeneity, p.drawn_similarity, p.drawn_pure, p.drawn_together
        return p.size, p.patches, *dials, p.drawn_never_pure

    # keys

    def key(self, step: str, method: str = "", split: str = "train") -> str:
        """Hash of all that a step reads. Notebook 00.

        step: "features" of a split, "bank", "network" of a method, "pseudo_masks", "counts" of a
        method on a split, or its "zero_shot" labels.
        """
        if method == "pbip_masked_image":
            return self.masked_images.key(step, "pbip_stage1", split)
        return {
            "features": lambda: self._features_key(self.preset.encoder, split),
            "bank": self._bank_key,
            "network": lambda: self._network_key(method),
            "pseudo_masks": self._pseudo_masks_key,
            "counts": lambda: self._counts_key(method, split),
            "zero_shot": lambda: self._zero_shot_key(split),
            "text": lambda: self._text_shot_key(split),
        }[step]()

    def base(self, step: str, method: str = "", split: str = "train") -> str:
        """The key of a step without its data and seed: equal where only these two differ, so that a
        mean over seeds never mixes settings, code or weights."""
        other = self.variant(self.preset, self.folder)
        other._blank = True
        if method == "pbip_masked_image":
            return self.masked_images.base(step, "pbip_stage1", split)
        return other.key(step, method, split)

    def _prints(self, split: str) -> str:
        if self._blank:  # what is asked of the data stays, for it is a setting
            return str(self.drawn)
        return self.data(split).fingerprint

    @property
    def _seed_key(self) -> str:
        return "" if self._blank else str(self.seed)

    def _hash(self, step: str, reads: Iterable[str], *rests: str, code=tuple(CODE)) -> str:
        """The one formula: what is done, the fields that it reads, the code that it runs, and what
        it rests on (keys of other steps, fingerprints, identities of weights, the seed)."""
        fields = {field: getattr(self.preset, field) for field in sorted(reads)}
        return digest(step, fields, [CODE[folder] for folder in code], rests)

    def _features_key(self, encoder: str, split: str) -> str:
        pooled = "pooled" if self._pooled(encoder) else "whole"
        rests = pooled, encoder, encoders.identity(encoder), self._prints(split)
        # of the encoder that is asked for, which may be the clustering's: the other plays no part
        reads = READS["features"] - {"encoder"}
        return self._hash("features", reads, *rests, code=("data", "nets"))

    def _pooled(self, encoder: str) -> bool:
        """Whether features are the mean of maps; lite0's are so by themselves, and embedded once
        for both looks."""
        return self.preset.look != "masked_image" and encoder != "lite0"

    def _bank_key(self) -> str:
        p = self.preset
        rests = [
            self._features_key(name, "train") for name in (p.encoder, p.cluster_encoder) if name
        ]
        if p.text_share:
            rests.append(self._text_key())
        return self._hash("bank", READS["bank"], *rests, self._seed_key)

    def _text_key(self) -> str:
        files = encoders.identity(self.preset.encoder), encoders.identity(encoders.TOKENS)
        return self._hash("text", (), *files, *sum(self.prompts.values(), []), code=("nets",))

    def _network_key(self, method: str) -> str:
        if method in STAGE2:
            return self._stage2_key(method)
        p, rests = self.preset, [self._seed_key]
        rests += [backbones.identity(p.backbone), self._prints("train")]
        if method == "cam":
            return self._hash(method, READS["network"] | {"cam_levels"}, *rests)
        reads = READS["network"] | READS["levels"] | READS["prototypes"]
        if p.prototypes == "learnable":
            reads |= {"beta"}
            if p.beta:  # they are as wide as the encoder
                reads |= READS["features"]
                rests.append(encoders.identity(p.encoder))
            if method == "pbip_stage1":
                reads |= READS["diversity"]
                reads |= READS["matching"] | {"matching_after"} if p.beta else set()
            return self._hash(method, reads, *rests)
        if method == "pbip_stage1" and plain(p):
            return self._hash(method, reads | {"beta"}, *rests)
        if method == "pbip_stage1":
            reads |= READS["matching"] | READS["features"]
            rests.append(encoders.identity(p.encoder))
        if method == "pbip_stage1" or p.similarity != "convolution":
            rests.append(self._bank_key())
        return self._hash(method, reads, *rests)

    def _stage2_key(self, method: str) -> str:
        if method == "pbip_stage2":
            masks = self._pseudo_masks_key()
        else:
            masks = self._prints(self._masked_split)
        name = self.preset.stage2_backbone or self.preset.backbone
        rests = masks, backbones.identity(name), self._seed_key
        return self._hash(method, READS["stage 2"], *rests)

    def _watched_key(self) -> str:
        """What the IoU of the history reads: it may change without the network."""
        reads = READS["maps"] | {"fusion", "cam_fusion"}
        return self._hash("watched", reads, self._prints("val"))

    def _pseudo_masks_key(self) -> str:
        reads = READS["maps"] | READS["masks"] | {"fusion", "pseudo_tta"}
        rests = self._network_key("pbip_stage1"), self._prints("train")
        return self._hash("pseudo masks", reads, *rests)

    def _counts_key(self, method: str, split: str) -> str:
        fingerprint = self._prints(split)
        if method == "nearest_prototype":
            reads = READS["features"] | READS["masks"] | {"size"}
            identity = encoders.identity(self.preset.encoder)
            return self._hash("nearest prototype", reads, self._bank_key(), identity, fingerprint)
        rests = (self._network_key(method), fingerprint)
        if method in STAGE2:
            return self._hash("counts", READS["masks"] | {"stage2_tta"}, *rests)
        fusion = "cam_fusion" if method == "cam" else "fusion"
        reads = READS["maps"] | READS["masks"] | {fusion, "tta"}
        return self._hash("counts", reads, *rests)

    def _zero_shot_key(self, split: str) -> str:
        rests = self._bank_key(), self._features_key(self.preset.encoder, split)
        return self._hash("zero shot", (), *rests)

    def _text_shot_key(self, split: str) -> str:
        whole = self._whole._features_key(self.preset.encoder, split)
        return self._hash("zero shot", (), self._text_key(), whole)

    def _made(self, file: Path, key: str) -> bool:
        return processes.agree(file.exists() and read_json(file, {"key": str})["key"] == key)

    # the bank

    @cached_property
    def encoder(self) -> encoders.Encoder:
        """The frozen encoder on the run's device. Notebook 02."""
        return self._encoder(self.preset.encoder)

    def _encoder(self, name: str) -> encoders.Encoder:
        return encoders.load(name, self.preset.encoder_size).to(self.device)

    def features(self, split: str = "train", encoder: str = "") -> np.ndarray:
        """Encoder features (n, D) float32 of the patches of a split, in its order. Notebook 02.

        Kept in the cache, one file for each encoder and split, for every run that shares it.
        encoder: the preset's where none is given.
        """
        name = encoder or self.preset.encoder
        key = self._features_key(name, split)
        file = self.cache / f"features-{key[:32]}.npz"
        if not file.exists():
            self._together("features", split, name)
        if not processes.agree(file.exists()):
            net = self.encoder if name == self.preset.encoder else self._encoder(name)
            pooled, patches = self._pooled(name), self.data(split)
            rows = processes.own_rows(range(len(patches)), EMBEDDED)
            own = encoders.embed(net, Subset(patches, rows), EMBEDDED, pooled) if rows else None
            made = processes.in_order(own, rows)
            if processes.rank() == 0:
                write_npz(file, features=made)
            processes.wait()
        return read_npz(file)["features"]

    @cached_property
    def bank(self) -> bank.Bank:
        """The image bank of the training split. Notebook 02."""
        folder, p, key = self.folder / "bank", self.preset, self._bank_key()
        if not self._made(folder / "key.json", key):
            began, train = time.perf_counter(), self.data("train")
            other = self.features("train", p.cluster_encoder) if p.cluster_encoder else None
            features = self.features()
            if processes.rank() == 0:
                made = bank.build(train, features, p, self.seed, other)
                if p.text_share:
                    made = bank.with_text(made, self.text, p.text_share)
                made.save(folder)
                seconds = time.perf_counter() - began
                write_json(folder / "key.json", {"key": key, "seconds": seconds})
            processes.wait()
        return bank.Bank.open(folder)

    @property
    def prompts(self) -> dict[str, list[str]]:
        """What is said of each class, by its name: see encoders.prompts."""
        return encoders.prompts(self.preset.prompts, self.spec)

    @cached_property
    def text(self) -> np.ndarray:
        """A text prototype of each class, in the joint space of the encoder: (C, D) float32, unit
        rows, the mean direction of the class's prompts (Radford et al., ICML 2021)."""
        rows = [encoders.embed_texts(self.preset.encoder, said) for said in self.prompts.values()]
        means = np.stack([of.mean(0) for of in rows])  # (C, D)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    @property
    def _whole(self) -> "Run":
        """The same run seen through features of whole patches: text means nothing to the tokens
        that masked pooling averages."""
        return self.variant(replace(self.preset, look="masked_image"), self.folder)

    # networks

    def net(self, method: str, on_epoch: Callable[[pd.DataFrame], None] | None = None) -> Any:
        """The trained network of a method of results.METHODS, in evaluation mode: a ClassNet, or
        the DeepLabV2 of stage 2. Notebooks 04 and 05.

        on_epoch: called with the history after each epoch that is trained. Raises ValueError for
        the method that trains nothing.
        """
        if method == "nearest_prototype":
            raise ValueError("nearest_prototype trains nothing: it has no network")
        if method == "pbip_masked_image":
            return self.masked_images.net("pbip_stage1", on_epoch)
        if method not in self._nets:
            epochs = self.preset if method in STAGE1 else segmentation.stage2(self.preset)
            done = self.processes == 1 or finished(self._place(method), epochs)
            if not done:
                self._refuse_to_share(method)
                self._together("net", method)
            train = self._stage1 if method in STAGE1 else self._stage2
            self._nets[method], self._histories[method] = train(method, on_epoch)
            if on_epoch and not done and processes.count() == 1:  # the others could not call it
                on_epoch(self.history(method))
        return self._nets[method].eval()

    def _place(self, method: str) -> Place:
        return Place(self.folder / method, self._network_key(method), self.seed)

    def _refuse_to_share(self, method: str) -> None:
        p = self.preset
        if method == "pbip_stage1" and p.pooling == "batch" and p.beta:
            raise ValueError(
                f"preset {p.name} has one matching loss for the whole batch (pooling = 'batch'), "
                "which several processes cannot share; train it in one"
            )

    def history(self, method: str) -> pd.DataFrame:
        """Losses and seconds of each epoch of a method, and the IoU of each class on val after it
        where stage 1 was watched. Notebook 04."""
        if method == "pbip_masked_image":
            return self.masked_images.history("pbip_stage1")
        self.net(method)
        history = self._histories[method]
        if "watched" not in history:
            return history
        if set(history["watched"]) == {self._watched_key()}:
            return history.drop(columns="watched")
        # the val masks, or how maps are read, are others since: these are no scores of today's
        return history[[c for c in history if c != "watched" and not c.startswith("IoU ")]]

    def preset_of(self, method: str) -> Preset:
        """The preset as a method of stage 1 reads it: a CAM is a 1x1 convolution on its own levels.
        Notebook 04."""
        p = self.preset
        if method != "cam":
            return p
        return replace(
            p,
            levels=p.cam_levels,
            fusion=p.cam_fusion,
            level_weights=(1.0,) * len(p.cam_levels),
            similarity="convolution",
            refine="none",
            pairs="classes",
        )

    def _stage1(self, method: str, on_epoch) -> tuple[nn.Module, pd.DataFrame]:
        p = self.preset_of(method)
        if method == "pbip_stage1" and p.prototypes == "learnable":
            encoder = self.encoder if p.beta else None
            loss = partial(losses.lpd_loss, p=p, encoder=encoder)
        elif method == "pbip_stage1" and not plain(p):
            self._tell_thin_teacher()
            loss = partial(losses.pbip_loss, p=p, bank=self.bank, encoder=self.encoder)
        else:
            loss = partial(losses.cam_loss, p=p)
        prompts = None if p.similarity == "convolution" else self._prompts()
        # the methods begin with the same weights and see the same batches: they are compared in
        # pairs
        torch.manual_seed(seed_of(self.seed, "weights of stage 1"))
        net = ClassNet(p, self.spec.C, prompts).to(self.device)
        place = self._place(method)
        watch = partial(self._on_val, p)
        return net, fit(net, self.data("train"), loss, p, place, watch, on_epoch)

    def _tell_thin_teacher(self) -> None:
        """Warn where the bank stands on too few pure patches to teach at full weight."""
        if (share := losses.trust(self.bank, self.preset)) < 1:
            pure = self.bank.pure()
            fewest = min(pure, key=lambda name: pure[name])
            warnings.warn(
                f"the matching loss counts {share:.0%}: {fewest} has {pure[fewest]} patches of one "
                f"class alone, {self.preset.enough} make a bank that can teach; bring more, or set "
                "single_class = false",
                stacklevel=2,
            )

    def _on_val(self, p: Preset, net: ClassNet) -> dict[str, float | str]:
        """IoU of each class on val, one view, predicted labels, ignore dropped: for the history;
        nothing is chosen by it."""
        val, C = self.data("val"), self.spec.C
        net.eval()
        matrix = np.zeros((C + 1, C + 1), np.int64)
        rows = processes.own_rows(range(len(val)), cams.BATCH)
        for index, scores, logits in cams.over_split(
            lambda x: cams.predict(net, x, p, "none"), val, self.device, rows
        ):
            truth = val.masks[index.numpy()]
            masks = argmax_masks(enlarged(scores, truth.shape[1:], p), logits > 0)
            matrix += metrics.confusion(truth, masks.numpy(), C)
        iou = metrics.scores(sum(processes.gathered(matrix)))["iou"]
        named = {f"IoU {name}": value for name, value in zip(self.spec.classes, iou)}
        return named | {"watched": self._watched_key()}

    def _prompts(self) -> Tensor:
        """Prototypes (S, D), unit rows: the bank's, or random directions to learn from where the
        preset learns them."""
        if self.preset.prototypes != "learnable":
            return torch.from_numpy(self.bank.prototypes)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "learned prototypes"))
        S, D = self.spec.C * self.preset.K, self.encoder.D if self.preset.beta else LEARNED_WIDTH
        return F.normalize(torch.randn(S, D, generator=generator), dim=1)

    def _stage2(self, method: str, on_epoch) -> tuple[nn.Module, pd.DataFrame]:
        p = segmentation.stage2(self.preset)
        trained_on = self.pseudo_masks() if method == "pbip_stage2" else self.masked_split()
        torch.manual_seed(seed_of(self.seed, "weights of stage 2"))
        net = segmentation.DeepLabV2(p, self.spec.C).to(self.device)
        place = self._place(method)
        loss = segmentation.segmentation_loss
        return net, fit(net, trained_on, loss, p, place, on_epoch=on_epoch)

    def pseudo_masks(self) -> segmentation.MaskedPatches:
        """The training patches with the masks that PBIP stage 1 gives them. Notebook 05."""
        folder, train = self.folder / "pseudo_masks", self.data("train")
        key = self._pseudo_masks_key()
        if not self._made(folder / "manifest.json", key):
            self._together("pseudo_masks")
        if not self._made(folder / "manifest.json", key):
            made_from = {"preset": self.preset.name, "seed": self.seed, "key": key}
            cams.pseudo_masks(self.net("pbip_stage1"), train, folder, self.preset, made_from)
        return segmentation.MaskedPatches(train, cams.PseudoMasks(folder, train))

    @property
    def _masked_split(self) -> str:
        return next(s for s in ("train", "val") if self.data(s).masks is not None)

    def masked_split(self) -> segmentation.MaskedPatches:
        """What full supervision trains on: the training split, or val where training masks are not
        published. Notebook 05."""
        split = self.data(self._masked_split)
        return segmentation.MaskedPatches(split, split.masks)

    # predictions and scores

    def predictor(self, method: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """What a method says of images (B, 3, H, W) float in [0, 1] on the run's device: class
        scores (B, C, h, w) and image-level logits (B, C), above 0 where a class is present.
        Notebook 06."""
        if method == "pbip_masked_image":
            return self.masked_images.predictor("pbip_stage1")
        if method == "nearest_prototype":
            return self._nearest
        net, p = self.net(method), self.preset_of(method)
        if method in STAGE1:
            return lambda images: cams.predict(net, images, p, p.tta)

        def segment(images: Tensor) -> tuple[Tensor, Tensor]:
            scores = segmentation.predict(net, images, p.stage2_tta)
            return scores, segmentation.present_classes(scores).float() - 0.5

        return segment

    def _nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest prototype of each position, nothing trained: see predictor."""
        side = self.preset.size // POSITION
        prototypes = images.new_tensor(self.bank.prototypes)  # (S, D)
        maps, shape = self.encoder.maps(images), (self.spec.C, side, side)
        scores = nearest_classes(maps, prototypes, self.bank.normalize, shape)
        size = images.shape[2:]
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)  # (B, C, H, W)
        return scores, segmentation.present_classes(scores).float() - 0.5

    @property
    def mpp(self) -> float:
        """Micrometres to a pixel of the patches that the networks see, 0 where the data set does
        not say: the published patches are resized to the preset's size, the phantom is drawn at
        it. Notebook 08."""
        if not self.spec.mpp:
            return 0.0
        return self.spec.mpp * patches.shrinkage(self.spec, self.data_root, self.preset.size)

    def trained(self, method: str) -> bool:
        """Whether the folder holds what a method predicts with, all of it, under today's key: else
        `net` or `bank` would make it first."""
        if method == "nearest_prototype":
            return self._made(self.folder / "bank" / "key.json", self._bank_key())
        if method == "pbip_masked_image":
            return self.masked_images.trained("pbip_stage1")
        p = self.preset if method in STAGE1 else segmentation.stage2(self.preset)
        return finished(self._place(method), p)

    @torch.no_grad()
    def shares(self, method: str, images: Tensor) -> Tensor:
        """Each class's share of every pixel as a method sees it, where its own image label closes
        the absent classes: (B, C, H, W) float, their sum 1.

        images: (B, 3, H, W) float in [0, 1], of a patch's size. The argmax is the mask that `masks`
        gives under predicted labels; shares can be averaged where images overlap.
        """
        scores, logits = self.predictor(method)(images.to(self.device))
        gating, labels = self.preset.gating, logits > 0
        if method in STAGE2:  # probabilities, which no label can push below 0: shared out anew
            scores, gating = scores.clamp_min(1e-12).log(), "closed"
        return closed(scores, labels, gating).softmax(1)

    def predict(
        self,
        image: np.ndarray,
        method: str = "pbip_stage1",
        profile: Callable[[int], np.ndarray] = windows.smooth,
    ) -> np.ndarray:
        """Each class's share of every pixel of an image of any size, (C, H, W) float32, from
        windows of a patch's size. Notebook 08.

        image: (H, W, 3) uint8 RGB, all in memory, at the run's resolution, see mpp. profile: the
        weight of each px along a window, see windows.smooth. The argmax is the mask that
        `python -m protolib predict` writes, which leaves glass out. Raises ValueError for anything
        but such an image.
        """
        p, C = self.preset, self.spec.C
        return windows.blended(partial(self.shares, method), image, p.size, C, profile)

    def predictions(
        self, method: str, split: str, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield index (B,), class scores (B, C, H, W) and predicted image labels (B, C) bool over
        a split, batch by batch. Notebook 06.

        rows: of the split, all where none are given.
        """
        title = results.METHODS[method]
        for index, scores, logits in cams.over_split(
            self.predictor(method), self.data(split), self.device, rows, f"{title}, {split}"
        ):
            yield index, scores, logits > 0

    def masks(
        self, method: str, split: str, rows: Sequence[int], image_labels: str = "predicted"
    ) -> np.ndarray:
        """Predicted masks (n, Hm, Wm) uint8 of some patches of a split at the size of the true
        ones, under the given image labels. Notebook 05."""
        made = [
            self._close(split, index, scores, predicted)[image_labels]
            for index, scores, predicted in self.predictions(method, split, rows)
        ]
        return np.concatenate(made)

    def _close(
        self, split: str, index: Tensor, scores: Tensor, predicted: Tensor
    ) -> dict[str, np.ndarray]:
        """The masks of a batch under each choice of image labels: LABELS -> (B, Hm, Wm) uint8."""
        truth, p = self.data(split), self.preset
        scores = enlarged(scores, truth.masks.shape[1:], p)
        oracle = torch.from_numpy(truth.labels[index.numpy()])
        labels = dict(zip(LABELS, (predicted, oracle, torch.ones_like(predicted))))
        return {how: argmax_masks(scores, labels[how], p.gating).numpy() for how in LABELS}

    def counts(self, method: str, split: str = "test") -> dict[str, dict[str, dict]]:
        """What scores are made of, slide by slide, counted in one pass over the
        split. Notebooks 02, 04, 05 and 06.

        Returns {slide: {image labels: {rule for ignore: metrics.Counts}}}; a patch whose name does
        not tell its slide is one by itself.
        """
        file = self.folder / method / f"counts_{split}.json"
        key = self.key("counts", method, split)
        if not self._made(file, key):
            self._together("counts", method, split)
        if not self._made(file, key):
            counted = self._count(method, split)
            plain = {
                slide: {
                    how: {rule: [c.matrix, c.boundary] for rule, c in rules.items()}
                    for how, rules in found.items()
                }
                for slide, found in counted.items()
            }
            if processes.rank() == 0:
                write_json(file, {"key": key, "slides": plain})
            processes.wait()
        return {
            slide: {
                how: {
                    rule: metrics.Counts(np.array(matrix), np.array(boundary), rule)
                    for rule, (matrix, boundary) in rules.items()
                }
                for how, rules in found.items()
            }
            for slide, found in read_json(file, {"slides": dict})["slides"].items()
        }

    def _count(self, method: str, split: str) -> dict[str, dict[str, dict]]:
        truth, C = self.data(split), self.spec.C
        slides = np.array([slide or name for slide, name in zip(truth.slides, truth.ids)])
        empty = {rule: metrics.Counts.none(C, rule) for rule in metrics.IGNORE}
        counted = {slide: {how: dict(empty) for how in LABELS} for slide in sorted(set(slides))}
        share = processes.own_rows(range(len(truth)), cams.BATCH)
        for index, scores, predicted in self.predictions(method, split, share):
            rows = index.numpy()
            for how, masks in self._close(split, index, scores, predicted).items():
                made = metrics.of_groups(truth.masks[rows], masks, slides[rows], C)
                for slide, rules in made.items():
                    for rule, counts in rules.items():
                        counted[slide][how][rule] += counts
        every = processes.gathered(counted)
        return {
            slide: {
                how: {
                    rule: sum((of[slide][how][rule] for of in every), none)
                    for rule, none in empty.items()
                }
                for how in LABELS
            }
            for slide in counted
        }

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
        scorer = metrics.Scorer(self.spec.C, protocol)
        for found in self.counts(method, split).values():
            scorer.counts += found[protocol.image_labels][protocol.ignore]
        return scorer.result()

    def zero_shot(
        self, split: str = "test", prompt: str = "image"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Main class of each patch by its mask, and the class of its nearest prototype, (n,) each.
        Table 6.

        prompt: "image", the prototypes of the bank, or "text", see text.

        The paper does not say how it turns similarities into classes: this is ours. A patch of
        ignore alone is left out.
        """
        truth, C = self.data(split), self.spec.C
        # (n, C)
        area = np.array([np.bincount(m.ravel(), minlength=C + 1)[:C] for m in truth.masks])
        if prompt == "text":
            nearest = (self._whole.features(split) @ self.text.T).argmax(1)
        else:
            features = self.bank.normalize(self.features(split))  # (n, D) unit rows
            nearest = (features @ self.bank.prototypes.T).argmax(1) // self.preset.K
        shown = area.any(1)
        return area.argmax(1)[shown], nearest[shown]

    def record(self, methods: Sequence[str] = ()) -> dict:
        """The run's results.json on the test split, written and returned: see results.record.
        Notebook 06.

        methods: those of the run where none are given.
        """
        methods = methods or self.methods
        oracle = metrics.Protocol("oracle", self.preset.ignore)
        scored = {m: self.scores(m) | {"oracle": self.scores(m, protocol=oracle)} for m in methods}
        trained = [m for m in methods if m != "nearest_prototype"]
        for method, title in self.titles.items():
            if method in scored and title != results.METHODS[method]:
                scored[method]["title"] = title
        made = results.record(
            preset=self.preset.name,
            dataset=self.dataset,
            seed=self.seed,
            device=str(self.device),
            threads=torch.get_num_threads(),
            protolib=__version__,
            methods=scored,
            peak_rss_mb=results.peak_rss_mb(),
            seconds={m: float(self.history(m)["seconds"].sum()) for m in trained},
        )
        if processes.rank() == 0:
            write_json(self.folder / "results.json", made)
        return made


def _step(own: tuple, step: str, given: tuple) -> None:
    """A step of a run in one of several processes."""
    run = Run(*own)
    run.processes = 1
    getattr(run, step)(*given)


def enlarged(scores: Tensor, size: Sequence[int], p: Preset) -> Tensor:
    """Class scores (B, C, h, w) at the size of the true masks: (B, C, Hm, Wm). Notebook 06."""
    side = tuple(size)
    if scores.shape[2:] == side:  # nothing to enlarge, and no pass over it
        return scores
    return F.interpolate(scores, side, mode="bilinear", align_corners=p.align_corners)
