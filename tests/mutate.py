"""Mutation testing: would a module's own tests notice if a line of it were wrong?

    .venv/bin/python tests/mutate.py matching maps     # or: make mutants MODULE="matching maps"
    .venv/bin/python tests/mutate.py --sample 60       # or: make mutants MODULE="--sample 60"

Every mutant is one small fault in one module: another constant, operator or comparison, two
arguments swapped, a keyword, a `.detach()` or a statement dropped. It is killed where one of the
module's tests fails or runs far longer than it should. What survives is printed, with its line.
equivalent.toml names the survivors that compute the same, each with the reason; they are left out
of the share. Less than 95 % killed is a failure. Tests marked slow are not asked: they take up to a
minute each, most of it in processes that they start, and those import the module from its file.

--sample N tries N mutants of each module, drawn by --seed, and prints the share with its 95 %
interval (Wilson's). Where tests are written for what survived, only another seed tells the share.

Why our own: cosmic-ray starts a process a mutant, and to import torch takes seconds. mutmut 3
forks like this file, but leaves alone what is decorated (all under torch.no_grad()) and what stands
outside functions, knows no detach, keepdim or std for var, and changes the words of every error.
"""

import argparse
import ast
import gc
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol
from _pytest.warnings import catch_warnings_for_item
from scipy.stats import binomtest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
PASSED = 0.95  # the share of mutants that must be killed
# module: its own tests
MODULES = {
    "protolib.matching": "matching",
    "protolib.losses": "losses",
    "protolib.maps": "maps",
    "protolib.metrics": "metrics",
    "protolib.bank": "bank",
    "protolib.classnet": "classnet",
    "protolib.cams": "cams",
    "protolib.segmentation": "segmentation",
    "protolib.training": "training",
    "protolib.study.compare": "compare",
}
# an operator, and what it is taken for
CHANGED = (
    "Lt LtE GtE, LtE Lt Gt, Gt GtE LtE, GtE Gt Lt, Eq NotEq, NotEq Eq, In NotIn, NotIn In, "
    "Is IsNot, IsNot Is, Add Sub, Sub Add, Mult Div, Div Mult, FloorDiv Div, Mod FloorDiv, "
    "Pow Mult, BitAnd BitOr, BitOr BitAnd, And Or, Or And"
)
OPERATORS = {words[0]: words[1:] for words in map(str.split, CHANGED.split(","))}
SWAPPED = (
    "amax amin, max min, sum mean, std var, argmax argmin, maximum minimum, any all, ceil floor"
)
TWIN = {a: b for pair in SWAPPED.split(", ") for a, b in (pair.split(), reversed(pair.split()))}
# what gives an array of the same shape: x.detach() -> x, np.abs(x) -> x
PLACE = "device", "non_blocking", "pin_memory"  # on a CPU they say nothing
SYMMETRIC = "max", "min", "maximum", "minimum", "allclose", "hypot"
DROPPED = set(
    "detach abs clamp clamp_min clip sqrt exp log log10 sigmoid softmax log_softmax flip copy "
    "clone float double long normalize softplus nan_to_num rint cumsum".split()
)


class Mutant(NamedTuple):
    """One fault: where it stands, what it changes, and what makes it in the tree of the module."""

    function: str
    span: range  # lines of the function, none outside of functions
    line: int
    change: str  # "a + b -> a - b"
    make: Callable[[], None]

    @property
    def name(self) -> str:
        return f"{self.function}: {self.change}"


def others(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    match node:
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.BinOp(left, op, right):
            yield from (ast.BinOp(left, other, right) for other in instead(op))
        case ast.BoolOp(op, values):
            yield from (ast.BoolOp(other, values) for other in instead(op))
        case ast.Compare(left, [op, *rest], values):
            yield from (ast.Compare(left, [other, *rest], values) for other in instead(op))
        case ast.AugAssign(target, op, value):
            yield from (ast.AugAssign(target, other, value) for other in instead(op))
            yield ast.Pass()
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.If(test=ast.Name("TYPE_CHECKING")):
            return
        case ast.If(test=ast.Call() | ast.Name() | ast.Attribute()):
            yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Expr(value=ast.Call()) if "super" in names(node):
            yield ast.Expr(ast.Name("__class__"))  # graft wants the same free variables
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Name(name)], value=value) if name in names(value):
            yield ast.Pass()  # x = f(x)
        case ast.Call(func, args, keywords):
            yield from other_calls(func, args, keywords)


def instead(op: ast.AST) -> Iterator[ast.AST]:
    """The operators that one is taken for."""
    for name in OPERATORS.get(type(op).__name__, ()):
        yield getattr(ast, name)()


def other_calls(func: ast.expr, args: list, keywords: list) -> Iterator[ast.AST]:
    """The same call without a keyword, with its first arguments swapped, of another function, or
    what it is called on."""
    for i, word in enumerate(keywords):
        if word.arg not in PLACE:
            yield ast.Call(func, args, keywords[:i] + keywords[i + 1 :])
    called = func.attr if isinstance(func, ast.Attribute) else ast.unparse(func)
    if len(args) > 1 and called not in SYMMETRIC:
        yield ast.Call(func, [args[1], args[0], *args[2:]], keywords)
    if not isinstance(func, ast.Attribute):
        return
    if called in TWIN:
        yield ast.Call(ast.Attribute(func.value, TWIN[called]), args, keywords)
    if called in DROPPED:
        library = isinstance(func.value, ast.Name) and func.value.id in ("F", "np", "torch")
        yield args[0] if library else func.value  # of np.abs(x).sqrt() the root is a method


def names(node: ast.AST) -> set[str]:
    """The names that an expression uses."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def mutants(tree: ast.Module) -> list[Mutant]:
    """All faults of a module; words, types and what an error says stay as they are."""
    found: list[Mutant] = []

    def visit(node: ast.AST, function: str, span: range, shown: ast.AST) -> None:
        """Faults below a node; shown: the smallest part that tells where a fault is."""
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".removeprefix(".")
            if isinstance(node, ast.FunctionDef):
                span = range(node.lineno, node.end_lineno + 1)
            for decorator in [d for d in node.decorator_list if "no_grad" in ast.unparse(d)]:
                drop = partial(node.decorator_list.remove, decorator)
                found.append(Mutant(function, span, node.lineno, "without no_grad", drop))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "exc"):
                continue
            holder: Any = value if isinstance(value, list) else vars(node)
            for key, child in enumerate(value) if isinstance(value, list) else [(field, value)]:
                if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                    continue
                for other in others(child):
                    if ast.unparse(other) == ast.unparse(child):
                        continue
                    change = f"{head(child)} -> {head(other)}"
                    if len(head(child)) < 12:  # "1 -> 2" says too little
                        change = f"{head(shown)}: {change}"
                    make = partial(holder.__setitem__, key, other)
                    found.append(Mutant(function, span, child.lineno, change, make))
                part = isinstance(child, ast.Call | ast.BinOp | ast.Compare | ast.stmt)
                visit(child, function, span, child if part else shown)

    visit(tree, "", range(0), tree)
    return numbered(found)


def head(node: ast.AST) -> str:
    """A node on one line; of a compound statement, its first one."""
    return ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]


def numbered(found: list[Mutant]) -> list[Mutant]:
    """Mutants whose names tell them apart."""
    seen: dict[str, int] = {}
    for i, mutant in enumerate(found):
        n = seen[mutant.name] = seen.get(mutant.name, 0) + 1
        if n > 1:
            found[i] = mutant._replace(change=f"{mutant.change} #{n}")
    return found


class Trial:
    """A plugin of pytest: where tests would run, they are tried on one mutant after the other, each
    in a fork of this process, which has imported everything."""

    def __init__(self, module: str, equivalent: dict[str, str], sample: int, seed: int):
        self.module, self.equivalent, self.sample, self.seed = module, equivalent, sample, seed
        self.passed, self.late = False, 0  # late: mutants that died or ran too long
        self.file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        self.killers: Counter[tuple[str, str]] = Counter()  # (function, test): mutants killed
        self.ran: set[int] | None = None  # lines of the module that a test runs, while it is asked

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge the module: print what survives, and the share that was killed."""
        began, tree = time.monotonic(), ast.parse(self.file.read_text("utf-8"))
        session.config._tmp_path_factory.getbasetemp()  # one for all
        found = apart(lambda: (self.watched(session.items), [*sys.modules]), 1200)
        self.lines, imported = found or ("they died, or took over 20 minutes", [])
        if not isinstance(self.lines, list):
            print(f"{self.module}: its tests fail as it is; mend them first: {self.lines}")
            return True
        for name in imported:  # once here, not in every fork: some take ten seconds
            with suppress(Exception):
                importlib.import_module(name)
        gc.freeze()  # a fork that looks for rubbish copies all that it looks at
        every, alive = mutants(tree), []
        unknown = self.equivalent.keys() - {mutant.name for mutant in every}
        of = len(every)
        if 0 < self.sample < of:
            drawn = set(random.Random(self.seed).sample(range(of), self.sample))
            every = [mutant for i, mutant in enumerate(every) if i in drawn]
        for mutant in tqdm(every, self.module, leave=False, disable=None):  # in a terminal alone
            if self.survives(session.items, tree, mutant):
                alive.append(mutant)
                if mutant.name not in self.equivalent:
                    place = f"{self.file.relative_to(ROOT)}:{mutant.line}"
                    print(f"  {place}  {mutant.name}", flush=True)
        if not isinstance(apart(lambda: self.watched(session.items), 1200), list):
            print(f"{self.module}: its tests fail as it is by now: what was killed says nothing")
            return True
        same = self.equivalent.keys() & {mutant.name for mutant in alive}
        stale = unknown | self.equivalent.keys() & {mutant.name for mutant in every} - same
        for name in sorted(stale):
            print(f"  equivalent.toml names what is no survivor: {name}")
        killed, asked = len(every) - len(alive), len(every) - len(same)
        low, high = binomtest(killed, asked).proportion_ci(method="wilson")
        drawn_by = f" (a sample of {of}, seed {self.seed}: {low:.1%} to {high:.1%})"
        print(
            f"{self.module}: {killed} of {len(every)} mutants killed, {self.late} of them by "
            f"their time or a crash, {len(same)} are equivalent: "
            f"{killed / asked:.1%}{drawn_by if len(every) < of else ''}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        self.passed = killed >= PASSED * asked and not stale
        return True

    def watched(self, items: list[pytest.Item]) -> list[tuple[float, set[int]]] | str:
        """The seconds of each test, and the lines of the module that it runs; where one fails, what
        it says. What a fixture runs counts for all tests, for they may share it."""
        found, shared = [], set()
        for item, following in pairwise([*items, None]):
            self.ran, began = set(), time.perf_counter()
            reports = reports_of(item, following)
            if failed := [report for report in reports if report.failed]:
                return f"{item.nodeid}\n{failed[0].longreprtext}"
            found.append((time.perf_counter() - began, self.ran))
            shared |= self.in_setup
        return [(seconds, ran | shared) for seconds, ran in found]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item):
        """Trace a test from its fixtures on, while that is asked."""
        if self.ran is not None:
            sys.settrace(self._trace)
        yield
        self.in_setup = set(self.ran or ())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item):
        """The end of that."""
        sys.settrace(None)
        yield

    def _trace(self, frame: FrameType, event: str, argument: object):
        if frame.f_code.co_filename != str(self.file):
            return None
        self.ran.add(frame.f_lineno)
        return self._trace

    def survives(self, items: list[pytest.Item], tree: ast.Module, mutant: Mutant) -> bool:
        """Whether no test fails for a mutant; those that run its function are asked, first what has
        killed others in it, then the fastest."""
        chosen = [
            (-self.killers[mutant.function, item.nodeid], seconds, i)
            for i, (item, (seconds, ran)) in enumerate(zip(items, self.lines))
            if not mutant.span or not ran.isdisjoint(mutant.span)
        ]
        asked = [items[i] for _, _, i in sorted(chosen)]

        def killer() -> str:
            mutant.make()
            transplant(self.module, str(self.file), tree)
            for item, following in pairwise([*asked, None]):
                reports = reports_of(item, following)
                if any(report.failed for report in reports):
                    return item.nodeid
            return ""

        found = apart(killer, 20 + 5 * sum(seconds for _, seconds, _ in chosen))
        self.late += found is None
        if found:
            self.killers[mutant.function, found] += 1
        return found == ""


def reports_of(item: pytest.Item, following: pytest.Item | None) -> list[pytest.TestReport]:
    """What comes of a test, under the filters of warnings that it is marked with."""
    with catch_warnings_for_item(item.config, item.ihook, "runtest", item):
        return runtestprotocol(item, log=False, nextitem=following)


def apart(work: Callable[[], Any], limit: float, quiet: bool = True) -> Any:
    """What `work` gives in a process of its own, without a word where it is quiet; None where it
    dies or is still at it after `limit` s."""
    ours, theirs = Pipe(duplex=False)
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM ends it
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        with suppress(BaseException):
            theirs.send(work())
        sys.stdout.flush()
        os._exit(0)
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # with what its tests have started
        os.waitpid(pid, 0)


def transplant(name: str, file: str, tree: ast.Module) -> None:
    """Give what was imported from a module the code and the constants of a changed tree: whoever
    holds a function or a class of it holds the changed one."""
    made = {"__name__": name, "__file__": file, "__package__": name.rpartition(".")[0]}
    exec(compile(ast.fix_missing_locations(tree), file, "exec"), made)
    graft(vars(sys.modules[name]), made, sys.modules[name])


def graft(old: Mapping[str, Any], new: Mapping[str, Any], owner: object) -> None:
    """The same for the parts of a module or a class."""
    for name, value in new.items():
        was = old.get(name)
        if isinstance(was, type) and was.__module__ == new.get("__name__"):
            graft(vars(was), vars(value), was)
        elif isinstance(inner(was), FunctionType) and isinstance(inner(value), FunctionType):
            if len(inner(was).__code__.co_freevars) == len(inner(value).__code__.co_freevars):
                inner(was).__code__ = inner(value).__code__
                inner(was).__defaults__ = inner(value).__defaults__
                inner(was).__kwdefaults__ = inner(value).__kwdefaults__
            if hasattr(was, "__wrapped__") and not hasattr(value, "__wrapped__"):
                rebind(name, was, inner(was))  # without its decorator
        elif type(value).__module__ in ("builtins", new.get("__name__")) and name[:2] != "__":
            if repr(value) == repr(was):
                continue
            if isinstance(owner, type):
                setattr(owner, name, value)
            else:
                rebind(name, was, value)


def inner(value: Any) -> Any:
    """The function that a method, property or decorated function stands for."""
    for way in ("__func__", "fget", "func", "__wrapped__"):
        if hasattr(value, way) and not isinstance(value, partial):
            return inner(getattr(value, way))
    return value


def rebind(name: str, old: object, new: object) -> None:
    """Put one thing in the place of another in all modules of ours that have it by this name."""
    for of, module in list(sys.modules.items()):
        if of.startswith(("protolib", "test_")) and vars(module).get(name) is old:
            vars(module)[name] = new


def judge(module: str, equivalent: dict[str, str], sample: int = 0, seed: int = 0) -> bool:
    """Whether enough mutants of a module are killed; in a process of its own, for the next module's
    tests must not be of this one."""

    def work() -> bool:
        trial, file = Trial(module, equivalent, sample, seed), f"tests/test_{MODULES[module]}.py"
        options = "-qq -s --tb=native --no-summary -p no:cacheprovider -p no:nbval -o addopts= "
        options += "-o tmp_path_retention_policy=none"
        # a folder of our own: other sessions of pytest clear the usual one up
        with tempfile.TemporaryDirectory() as folder:
            words = [*options.split(), "-m", "not slow", f"--basetemp={folder}/tests", file]
            pytest.main(words, plugins=[trial])
        return trial.passed

    return apart(work, 24 * 3600, quiet=False)


def main(words: list[str]) -> int:
    """Judge the modules named, such as "matching", or all; 1 where one falls short."""
    known = dict(zip(MODULES.values(), MODULES))
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="such as matching; all where none is named")
    parser.add_argument("--sample", type=int, default=0, help="mutants of each that are tried")
    parser.add_argument("--seed", type=int, default=0, help="which ones; 0 where none is said")
    asked = parser.parse_args(words)
    if unknown := set(asked.modules) - known.keys():
        raise SystemExit(f"no module {', '.join(unknown)}; expected some of {', '.join(known)}")
    equivalent = tomllib.loads(Path(__file__).with_name("equivalent.toml").read_text("utf-8"))
    found = [
        judge(known[name], equivalent.get(name, {}), asked.sample, asked.seed)
        for name in asked.modules or known
    ]
    return int(not all(found))


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main(sys.argv[1:]))
