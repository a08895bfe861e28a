"""What identifies a result: hashes of what was said, and of the code that runs. No torch here: the
command line asks for them too."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any


def digest(*said) -> str:
    """SHA-256 of anything that JSON can hold, hex. Notebook 00."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def code_of(folder: Path) -> str:
    """Hash of the syntax trees of a folder's modules, docstrings left out: a changed comment makes
    nothing anew."""
    trees = {}
    for path in sorted(folder.glob("*.py")):
        if path.name == "__main__.py":  # the command line: it has no logic of its own
            continue
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:]
        trees[path.name] = _plain(tree)
    return digest(trees)


def _plain(node: Any) -> Any:
    """A syntax tree as JSON can hold it, without what is empty: newer Pythons have more fields."""
    if isinstance(node, ast.AST):
        parts = {name: _plain(value) for name, value in ast.iter_fields(node)}
        return [type(node).__name__, {k: v for k, v in parts.items() if v not in ("None", [])}]
    return [_plain(item) for item in node] if isinstance(node, list) else repr(node)


# by folder of protolib, "" for the kernels; read once, with the import: what runs is what is
# hashed, also after the files were edited
CODE = {name: code_of(Path(__file__).parent / name) for name in ("", "data", "nets")}


@cache
def teaching() -> list[str]:
    """Hashes of what the notebooks call beside the kernels: it changes figures, but no result."""
    return [code_of(Path(__file__).parent / name) for name in ("study", "teach")]
