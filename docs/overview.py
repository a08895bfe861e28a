"""Draw docs/overview.png, what the kit makes of three patches of the phantom:
`.venv/bin/python docs/overview.py`, some minutes at preset quick, or what runs/overview holds."""

from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from protolib.experiment import Run
from protolib.teach import viz

matplotlib.use("Agg")
HERE = Path(__file__).resolve().parent
COLUMNS = ("patch", "CAM of one class", "pseudo mask", "final mask", "true mask,\nonly to score")

run = Run("quick", run_dir=HERE.parent / "runs" / "overview")
val, spec = run.data("val"), run.spec
# where two classes share the patch most evenly: chosen by their truth, not by what comes out
shares = [(np.asarray(val.masks) == c).mean((1, 2)) for c in range(spec.C)]
chosen = np.argsort(-np.sort(shares, axis=0)[-2], kind="stable")[:3]

found = {}
for index, scores, _ in run.predictions("pbip_stage1", "val", chosen):
    found |= dict(zip(index.tolist(), scores.numpy()))  # patch -> (C, H, W)
edge = val.images.shape[1] - 0.5
pseudo = run.masks("pbip_stage1", "val", chosen, "oracle")  # the label closes absent classes
masks = run.masks("pbip_stage2", "val", chosen)

fig, axes = viz.grid(len(chosen), len(COLUMNS), side=1.6)
for ax, title in zip(axes[0], COLUMNS):
    ax.set_title(title, fontsize=9)
for row, i, *made in zip(axes, chosen, pseudo, masks, np.asarray(val.masks)[chosen]):
    first = int(np.flatnonzero(val.labels[i])[0])
    row[0].imshow(val.images[i])
    row[0].set_ylabel("label:\n" + viz.label_text(val.labels[i], spec), fontsize=9)
    row[1].imshow(val.images[i])
    row[1].imshow(found[i][first], cmap="inferno", alpha=0.7, extent=(-0.5, edge, edge, -0.5))
    row[1].set_ylabel(spec.classes[first], fontsize=9)
    for ax, shown in zip(row[2:], made):
        ax.imshow(viz.mask_rgb(shown, spec), interpolation="nearest")
        viz.letter_regions(ax, shown, spec)
viz.class_legend(fig, spec)

drawn = BytesIO()
fig.savefig(drawn, format="png", dpi=100, bbox_inches="tight")
small = Image.open(drawn).convert("RGB").quantize(192)  # a palette takes a third of the bytes
small.save(HERE / "overview.png", optimize=True)
print(f"docs/overview.png, {(HERE / 'overview.png').stat().st_size / 1000:.0f} kB")
