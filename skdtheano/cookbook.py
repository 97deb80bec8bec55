"""Recipes of graphs that a process, this one or an earlier one, has derived.

With the one that is kept on the disk nobody builds, derives or rewrites a graph: that takes a
process 0.1 s for the graphs of a fit, and reading them 2 ms.
"""

import gc
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from skdtheano import engine, shelf
from skdtheano.engine import Variable
from skdtheano.recipe import Recipe, derived, recipe_of_text
from skdtheano.version import VERSION

Graph = tuple[Sequence[Variable], Sequence[Variable]]

#: Sources that decide what a graph is and how it is written down.
_SOURCES = ("engine.py", "recipe.py", "symbolic.py", "scans.py", "draws.py", "graphs/**/*.py")


def recipe_for(what: str, graph: Callable[[], Graph], name: str) -> Recipe:
    """A graph's recipe: from the disk, or derived and kept there.

    Parameters
    ----------
    what : str
        Tells the graph from all others that these sources make.
    graph : callable
        Makes its inputs and outputs; called only if nothing is kept.
    name : str
        See `skdtheano.recipe.derived`.
    """
    key = _key(what)
    if key is None:
        return _derived(graph, name)
    text = shelf.kept(key)
    if text is not None:
        with suppress(ValueError, LookupError, TypeError):
            return recipe_of_text(text.decode())
    recipe = _derived(graph, name)
    with suppress(TypeError):  # a constant that has no text
        shelf.keep(key, recipe.text().encode())
    return recipe


def _derived(graph: Callable[[], Graph], name: str) -> Recipe:
    # Thousands of nodes make the collector look through all that the imports have left, which
    # takes as long as everything else here: 0.12 s. Those nodes wait for its next turn.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return derived(*graph(), name)
    finally:
        if was_enabled:
            gc.enable()


def _key(what: str) -> str | None:
    """All that a recipe depends on, or None where that cannot be told."""
    if _SOURCES_READ is None:
        return None
    return "\n".join(
        ["recipe", VERSION, np.__version__, *engine.identity(), _SOURCES_READ, what]
    )


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


#: With the imports: a file that is edited later is not what this process runs.
_SOURCES_READ = _digest_of_sources()
