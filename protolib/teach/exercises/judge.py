"""The judge of the exercises: runs a learner's function beside the right one on every input, and
says in words what differs.

An exercise is one block: the decorator holds its inputs, the likely slips and a nudge; the function
below it is the right answer. A slip is a wrong answer, under the hint that it earns: a learner
whose results equal it on every input gets that hint.
"""

import copy
import inspect
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, update_wrapper
from typing import Any, NamedTuple

import numpy as np
import torch

SECONDS = 10  # for all inputs of an exercise: they are small


class Outcome(NamedTuple):
    """What one call came to: a value or an error, the gradient, and the argument it changed."""

    value: np.ndarray | None = None  # float64
    error: Exception | None = None
    yes_no: bool = False  # whether the value was of True and False
    tolerance: float = 1e-6
    gradient: np.ndarray | None = None
    changed: str = ""


class Exercise:
    """A check of a learner's function: calling it prints a verdict and returns whether it is
    solved.

    In a notebook that is being graded (nbgrader and `python -m protolib grade` say so by
    NBGRADER_EXECUTION) what is not solved raises AssertionError.
    """

    def __init__(self, right: Callable, nudge: str, inputs: Sequence, slips: dict, rest: dict):
        update_wrapper(self, right)
        self.right, self.nudge, self.inputs, self.slips = right, nudge, tuple(inputs), slips
        self.name = right.__name__.removeprefix("check_")
        self.arguments = list(inspect.signature(right).parameters)
        self.points: int = rest["points"]
        self.gradient: str = rest["gradient"]
        self.only: dict[str, tuple[int, ...]] = rest["only"]

    def __call__(self, mine: Callable) -> bool:
        verdict = self.verdict(mine)
        print(f"{getattr(mine, '__name__', 'your function')}: {verdict or 'solved'}")
        if verdict and "NBGRADER_EXECUTION" in os.environ:
            raise AssertionError(verdict)
        return not verdict

    @cached_property
    def wanted(self) -> list[Outcome]:
        """What the right answer gives for every input."""
        return [self._run(self.right, given) for given in self.inputs]

    def verdict(self, mine: Callable) -> str:
        """What is wrong with a function, and a hint; empty if nothing is."""
        found = []
        with _limit(SECONDS):
            for given in self.inputs:
                found.append(self._run(mine, given))
                if isinstance(found[-1].error, TimeoutError):
                    break
        if any(_of_stub(outcome.error) for outcome in found):
            return f"not solved yet: {self.nudge}"
        wrong = [n for n, pair in enumerate(zip(found, self.wanted)) if not _same(*pair)]
        changed = next((outcome.changed for outcome in found if outcome.changed), "")
        keep = f"your function changes its argument {changed}; work on a copy"
        if not wrong:
            if changed:
                return f"not yet: the values are right, but {keep}"
            return self._of_gradient([outcome.gradient for outcome in found])
        for hint, slip in self.slips.items():
            likewise = (
                _same(outcome, self._run(slip, given)) for outcome, given in zip(found, self.inputs)
            )
            if len(found) == len(self.inputs) and all(likewise):
                return f"not yet: {hint}"
        for hint, places in self.only.items():
            if set(wrong) <= set(places) and len(found) == len(self.inputs):
                error = found[wrong[0]].error
                stopped = f" ({type(error).__name__}: {error})" if error else ""
                return f"not yet: right elsewhere, but {hint}{stopped}"
        words = _general(found, self.wanted) or _difference(found[wrong[0]], self.wanted[wrong[0]])
        place = f" (for {self._described(self.inputs[wrong[0]])})"
        return f"not yet: {words}{place}{f'; and {keep}' if changed else ''}"

    def _run(self, function: Callable, given: tuple) -> Outcome:
        own = [_copied(part) for part in given]
        leaf = None
        if self.gradient:
            leaf = own[self.arguments.index(self.gradient)].requires_grad_()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                value = function(*own)
                gradient = None if leaf is None else _gradient(value, leaf)
            changed = [name for name, a, b in zip(self.arguments, own, given) if not _equal(a, b)]
            yes_no = "bool" in str(getattr(value, "dtype", type(value)))
            low = any(str(getattr(part, "dtype", "")).endswith("float32") for part in _flat(given))
            # an epsilon of 1e-6 against 0 / 0 is no mistake
            tolerance = 1e-4 if low else 1e-5
            return Outcome(
                None if value is None else _array(value),
                None,
                yes_no,
                tolerance,
                gradient,
                (changed or [""])[0],
            )
        except Exception as error:  # whatever a learner's code raises: the notebook goes on
            return Outcome(error=error)

    def _of_gradient(self, gradients: Sequence[np.ndarray | None]) -> str:
        """What is wrong with the gradients: the first is compared, all are to be numbers."""
        wanted, found = self.wanted[0].gradient, gradients[0]
        if wanted is None:
            return ""
        if found is None:
            return (
                f"not yet: the values are right, but no gradient reaches {self.gradient}: stay "
                "with tensors, without .item(), float(), .detach() or numpy"
            )
        if not _close(found, wanted, 1e-4):
            return f"not yet: the values are right, but the gradient of {self.gradient} is not"
        for own, given in zip(gradients, self.inputs):
            if own is not None and np.isnan(own).any():
                return (
                    f"not yet: the values are right, but the gradient of {self.gradient} is NaN "
                    f"(for {self._described(given)}): torch.where and nan_to_num mend the value "
                    "alone, what they leave out must be a number too"
                )
        return ""

    def _described(self, given: tuple) -> str:
        parts = []
        for name, part in zip(self.arguments, given):
            shapes = [f"{tuple(p.shape)}" for p in _flat((part,)) if getattr(p, "shape", ())]
            parts.append(f"{name} {' and '.join(shapes)}" if shapes else f"{name} = {part!r}")
        return ", ".join(parts)


def exercise(
    nudge: str, inputs: Sequence[tuple], slips: dict[str, Callable], **rest: Any
) -> Callable[[Callable], Exercise]:
    """Make a check of the right answer below.

    nudge: the first hint, which is not the solution; inputs: tuples of arguments; slips: hint ->
    a function that makes that mistake. rest: points (1), which a grader counts; gradient ("", or
    the name of the argument that a gradient must reach, on the first input); only ({}), hint ->
    the places of inputs: what is said where no slip fits and nothing but these comes out wrong.
    """
    usual = {"points": 1, "gradient": "", "only": {}}
    return lambda right: Exercise(right, nudge, inputs, slips, usual | rest)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """End a loop without end by TimeoutError, where the system can: not on Windows, not in a
    thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"it ran for more than {seconds:g} s; does a loop never end?")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _of_stub(error: Exception | None) -> bool:
    """Whether an error is the bare `raise NotImplementedError` of a stub, in the learner's own
    module: torch raises it too, with words where an operation does not take a dtype, in a module
    of its own where a method is left open."""
    if not isinstance(error, NotImplementedError) or error.args:
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return len({frame.f_globals.get("__name__") for frame in frames} - {__name__}) == 1


def _flat(given) -> Iterator:
    for part in given:
        if isinstance(part, (list, tuple)):
            yield from _flat(part)
        else:
            yield part


def _copied(part):
    """A copy that keeps the order in memory: what is not contiguous stays so."""
    if isinstance(part, np.ndarray):
        return part.copy(order="K")
    if isinstance(part, (list, tuple)):
        return type(part)(_copied(one) for one in part)
    return part.clone() if isinstance(part, torch.Tensor) else copy.deepcopy(part)


def _equal(a, b) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, (np.ndarray, torch.Tensor)):
        return np.array_equal(_array(a), _array(b), equal_nan=True)
    return a == b


def _array(value) -> np.ndarray:
    """A tensor, array, number or list of them as a float64 array; TypeError for anything else."""
    if isinstance(value, (list, tuple)):
        return np.stack([_array(v) for v in value]) if len(value) else np.zeros(0)
    array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"it gives {type(value).__name__}, {value!r:.40}; expected numbers")
    return array.astype(np.float64)


def _gradient(value, leaf: torch.Tensor) -> np.ndarray | None:
    """The gradient of a weighted sum of the value; None where none reaches the leaf."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return None
    weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    found = torch.autograd.grad((value * weights).sum(), leaf, allow_unused=True)[0]
    return None if found is None else _array(found)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return a.shape == b.shape and np.allclose(
        a, b, rtol=tolerance, atol=tolerance / 10, equal_nan=True
    )


def _same(found: Outcome, wanted: Outcome) -> bool:
    if found.error or wanted.error or found.value is None or wanted.value is None:
        return repr(found.error) == repr(wanted.error) and found.value is wanted.value
    return _close(found.value, wanted.value, wanted.tolerance)


# What holds on every input, and what it is called.
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], bool]] = {
    "rows and columns are swapped": lambda f, w: f.ndim > 1 and _close(f.T, w, 1e-4),
    "the last two axes are swapped": lambda f, w: (
        f.ndim > 2 and _close(np.swapaxes(f, -1, -2), w, 1e-4)
    ),
    "the values are right, but not the shape": lambda f, w: (
        f.size == w.size and _close(f.ravel(), w.ravel(), 1e-5)
    ),
    "right but for rounding: a round(), an epsilon, a short float?": lambda f, w: (
        any(_close(f, np.round(w, digits), 1e-9) for digits in (1, 2)) or _close(f, w, 5e-3)
    ),
    "this is 1 minus the answer": lambda f, w: _close(1 - f, w, 1e-4),
    "the sign: this is minus the answer": lambda f, w: _close(-f, w, 1e-4),
    "the order is turned round": lambda f, w: f.ndim > 0 and _close(f[::-1], w, 1e-4),
    "these are percent": lambda f, w: _close(f / 100, w, 1e-4),
}


def _general(found: Sequence[Outcome], wanted: Sequence[Outcome]) -> str:
    """A mistake that can be made in any exercise, where all results show it."""
    pairs = [(f.value, w.value) for f, w in zip(found, wanted)]
    if any(f is None or w is None for f, w in pairs) or len(found) < len(wanted):
        return ""
    for words, holds in PATTERNS.items():
        if all(holds(*pair) for pair in pairs):
            return words
    values = [f for f, _ in pairs]
    if all(_close(values[0], f, 1e-9) for f in values[1:]) and values[0].size:
        return "the answer is the same for every input: does it use its arguments?"
    if all(f.shape == w.shape for f, w in pairs):
        f, w = (np.concatenate([side.ravel() for side in sides]) for sides in zip(*pairs))
        if (np.isfinite(f) != np.isfinite(w)).any():
            return ""
        f, w = f[np.isfinite(w)], w[np.isfinite(w)]
        gap = f - w
        if len(f) > 2 and np.ptp(gap) < 1e-6 and abs(gap[0]) > 1e-4:
            return f"every value is {abs(gap[0]):.4g} too {'high' if gap[0] > 0 else 'low'}"
        there = np.abs(w) > 1e-9
        if there.sum() < 3 or f[~there].any():  # a factor leaves 0 as it is
            return ""
        ratio = f[there] / w[there]
        if np.ptp(ratio) < 1e-4 * abs(ratio[0]):
            return f"every value is {ratio[0]:.4g} times the right one"
    return ""


def _difference(found: Outcome, wanted: Outcome) -> str:
    """Where one result differs, in words."""
    if found.error:
        what = f"{type(found.error).__name__}: {found.error}".strip(": ")
        return f"your function stopped with {what}"
    if found.value is None:
        return "your function gives None; does it end with return?"
    if wanted.value is None:
        return f"this input should be refused with a {type(wanted.error).__name__}"
    f, w = found.value, wanted.value
    if f.shape != w.shape:
        shapes = f"the shape is {f.shape}, expected {w.shape}"
        if f.ndim < w.ndim:
            return f"an axis was lost, by a mean, a sum or a maximum over too many: {shapes}"
        return f"there is an axis too many: {shapes}" if f.ndim > w.ndim else shapes
    if wanted.yes_no and not np.isin(f, (0, 1)).all():
        return "the answer is yes or no, True or False, for each; these are other numbers"
    gap = np.nan_to_num(np.where(np.isnan(f) & np.isnan(w), 0, np.abs(f - w)), nan=np.inf)
    worst = np.unravel_index(gap.argmax(), gap.shape)
    place = f" at {tuple(int(i) for i in worst)}" if worst else ""
    words = f"the value{place} is {f[worst]:.4g}, expected {w[worst]:.4g}"
    if np.isnan(f).any() or np.isnan(w).all():
        return words
    low, high = np.nanmin(w), np.nanmax(w)
    if f.min() < low - 1e-6 or f.max() > high + 1e-6:
        words += f"; yours go from {f.min():.4g} to {f.max():.4g}, right is {low:.4g} to {high:.4g}"
    return words
