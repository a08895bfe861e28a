"""What the values of a folder's masks mean, as far as it is told or can be seen."""

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protolib.data.pictures import LOSSY, Unfit, opened, read_image
from protolib.data.regions import WHITE

Colour = tuple[int, int, int]  # red, green and blue, 0 to 255
COLOURS = (  # of classes without one of their own; ignore is white
    *((255, 0, 0), (0, 255, 0), (0, 0, 255), (153, 0, 255)),
    *((255, 165, 0), (0, 255, 255), (255, 0, 255), (128, 128, 0)),
)
IGNORE = (255, 255, 255)
# a value means ignore where this share of its pixels is as white as glass, and the value that it is
# weighed against shows less than half of it
GLASS = 0.5
LOOKED = 200  # masks that are weighed at most


class Codes(NamedTuple):
    """What masks mean: a value for each of C classes, values of ignore, C + 1 colours, and what to
    know about it, a sentence each."""

    values: tuple[int, ...]
    ignored: tuple[int, ...]
    palette: tuple[Colour, ...]
    notes: tuple[str, ...] = ()


class Masks(NamedTuple):
    """What the masks of a folder hold."""

    values: Counter  # value of an index mask -> pixels
    colours: Counter  # (r, g, b) of a colour mask -> pixels
    palette: dict[int, Colour]  # of indexed masks: value -> colour


def meaning(pairs: Sequence[tuple[Path, Path]], C: int, told: Codes) -> Codes:
    """What the masks of `pairs`, (image, mask), mean; what is told counts, the rest is seen.

    Raises ValueError with what they hold and what to say, where it can be neither told nor seen.
    """
    if not pairs:
        palette = told.palette or distinct([None] * C)
        return Codes(tuple(range(C)), told.ignored, palette, ("no masks were found",))
    seen = _look(mask for _, mask in pairs)
    if seen.colours:
        if len(told.palette) != C + 1:
            raise ValueError(
                f"masks are in colours: {_shares(seen.colours)}. Say which is which, one per class "
                "in the order of the classes, then ignore: --palette ff0000,00ff00,...,ffffff."
            )
        if odd := [colour for colour in seen.colours if colour not in told.palette]:
            raise ValueError(f"masks hold {_shares(seen.colours)}: --palette has no {odd[0]}.")
        said = f"masks in colours: {_shares(seen.colours)}"
        return Codes(tuple(range(C)), (), told.palette, (said,))
    values, why = _values(told, seen, C, pairs)
    ignored = told.ignored or tuple(sorted(seen.values.keys() - set(values)))
    own = [seen.palette.get(value) for value in (*values, *ignored[:1])]
    palette = told.palette or distinct(own[:C], own[C] if len(own) > C else None)
    notes = (f"masks: {_shares(seen.values)}", *[why] * bool(why))
    return Codes(values, ignored, palette, notes)


def _look(masks: Iterable[Path]) -> Masks:
    """Read every mask once."""
    values, colours, palette = Counter(), Counter(), {}
    for path in masks:
        with opened(path) as image:
            if image.format in LOSSY:
                raise Unfit("lossy", path, f"is {image.format}, which changes values: give PNG")
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                for count, colour in image.convert("RGB").getcolors(image.width * image.height):
                    colours[colour] += count
                continue
            flat = image.getpalette("RGB") if image.mode == "P" else None
            pixels = np.asarray(image).astype(np.int64)
        found, counts = np.unique(pixels, return_counts=True)
        values.update(dict(zip(found.tolist(), counts.tolist())))
        table = list(zip(*[iter(flat)] * 3)) if flat else []
        for value in found.tolist():
            colour = table[value] if value < len(table) else None
            if colour and palette.setdefault(value, colour) != colour:
                raise ValueError(
                    f"{path}: value {value} has the colour {colour}, in masks before it "
                    f"{palette[value]}: save all masks with one palette."
                )
    if all(colour == (value,) * 3 for value, colour in palette.items()):
        palette = {}  # a grey, or as good as one: no colours of classes
    if values and colours:
        raise ValueError("some masks hold values and some colours: save all in one way.")
    return Masks(values, colours, palette)


def _values(
    told: Codes, seen: Masks, C: int, pairs: Sequence[tuple[Path, Path]]
) -> tuple[tuple[int, ...], str]:
    """One value per class, and by which sign, where it was not plain. Raises ValueError where it is
    not told and cannot be seen."""
    plain, shifted = tuple(range(C)), tuple(range(1, C + 1))
    rest = set(seen.values) - {255} - set(told.ignored)
    if told.values:
        if len(told.values) != C or len(set(told.values)) != C:
            raise ValueError(f"--codes names {told.values}; expected {C} values, one per class.")
        if odd := rest - set(told.values) if told.ignored else set():
            raise ValueError(f"masks hold {min(odd)}, which --codes and --ignored do not name.")
        return told.values, ""
    how = (
        f"say --codes {','.join(map(str, plain))} or another list, one value per class, and "
        "--ignored for the rest"
    )
    if rest <= set(plain):
        return plain, ""
    if not rest <= {0, *shifted}:
        raise ValueError(f"masks hold {_shares(seen.values)} for {C} classes: {how}.")
    if 0 not in rest:
        return shifted, f"the values 1 to {C} are taken for the classes in their order"
    # 0 to C: is the first one ignore, or the last?
    low, high = _glass(pairs, 0), _glass(pairs, C)
    said = f"{low:.0%} of the pixels of 0 and {high:.0%} of those of {C} are white as glass"
    if low >= GLASS > 2 * high:
        return shifted, f"{said}: 0 is taken for ignore"
    if high >= GLASS > 2 * low:
        return plain, f"{said}: {C} is taken for ignore"
    raise ValueError(f"masks hold 0 to {C} for {C} classes ({said}), so one is ignore: {how}.")


def _glass(pairs: Sequence[tuple[Path, Path]], value: int) -> float:
    """Share of white pixels among those where masks have a value, over some of them."""
    white = total = 0
    for image, mask in islice(pairs, LOOKED):
        with opened(mask) as codes:
            there = np.asarray(codes) == value
        if there.any():
            pixels = read_image(image)
            if pixels.shape[:2] == there.shape:
                white += int((pixels[there].min(1) >= WHITE).sum())
                total += int(there.sum())
    return white / max(total, 1)


def _shares(counts: Mapping) -> str:
    total = sum(counts.values())
    return ", ".join(f"{value} ({n / total:.1%})" for value, n in sorted(counts.items())[:20])


def distinct(wanted: Sequence[Colour | None], ignore: Colour | None = None) -> tuple[Colour, ...]:
    """One colour per class, the wanted one where it is no other's, then ignore."""
    spare = [*COLOURS, *(_hue(i) for i in range(1000))]
    last = ignore if ignore and ignore not in wanted else IGNORE
    taken = [last]
    for colour in wanted:
        free = (c for c in spare if c not in taken and c not in wanted)
        taken.append(next(free) if colour is None or colour in taken else colour)
    return (*taken[1:], last)


def _hue(i: int) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 0.9 - i % 3 * 0.2)
    return round(255 * r), round(255 * g), round(255 * b)
