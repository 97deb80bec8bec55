"""Recipes on the disk, so that a process derives none that another one has derived.

They lie in the engine's cache directory, one file each, and all processes of a user on a host
share them. A file's name is a hash of all that decides a recipe, and its first line one of the
rest, so what is stale, damaged or foreign is not found or not believed. None of it is ever an
error: then the engine derives the graph again.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from skdtheano import engine
from skdtheano.engine import Variable
from skdtheano.recipe import Recipe, derived, recipe_of_text
from skdtheano.version import VERSION

Graph = tuple[Sequence[Variable], Sequence[Variable]]

#: Sources that decide what a graph is and how it is written down.
_SOURCES = ("engine.py", "recipe.py", "symbolic.py", "scans.py", "draws.py", "graphs/**/*.py")


def directory() -> Path:
    """Where this package keeps what it has derived and compiled."""
    return Path(engine.cache_directory()) / "skdtheano"


def recipe_for(what: str, graph: Callable[[], Graph], name: str) -> Recipe:
    """A graph's recipe: from the disk, or derived and kept there.

    Parameters
    ----------
    what : str
        Tells the graph from all others that these sources make.
    graph : callable
        Makes its inputs and outputs; called only if there is no file.
    name : str
        See `skdtheano.recipe.derived`.
    """
    key = _key(what)
    if key is None:
        return derived(*graph(), name)
    file = directory() / f"recipe_{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    recipe = _read(file, key)
    if recipe is None:
        recipe = derived(*graph(), name)
        _write(file, key, recipe)
    return recipe


def _key(what: str) -> str | None:
    """All that a recipe depends on, or None where that cannot be told."""
    sources = _digest_of_sources()
    return sources and "\n".join([VERSION, np.__version__, *engine.identity(), sources, what])


@cache
def _digest_of_sources() -> str | None:
    root = Path(__file__).parent
    digest = hashlib.sha256()
    files = sorted(file for pattern in _SOURCES for file in root.glob(pattern))
    try:
        for file in files:
            digest.update(file.read_bytes())
    except OSError:
        return None
    return digest.hexdigest() if files else None


def _sealed(key: str, text: str) -> str:
    body = f"{key}\n{text}"
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}"


def _read(file: Path, key: str) -> Recipe | None:
    try:
        content = file.read_text()
        text = content.rpartition("\n")[2]
        return recipe_of_text(text) if content == _sealed(key, text) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(file: Path, key: str, recipe: Recipe) -> None:
    """Write a file whole or not at all: others may read it meanwhile."""
    try:
        content = _sealed(key, recipe.text())
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as draft:
            draft.write(content)
        os.replace(draft.name, file)
    except (OSError, TypeError):  # a full disk, a directory of others; an odd constant
        pass
