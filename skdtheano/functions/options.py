"""How a function is made: its target, names and what it may do."""

from dataclasses import dataclass

TARGETS = (None, "cpu", "dask", "gpu")


@dataclass(frozen=True)
class Options:
    """How a function is made; see `function`."""

    on_unused_input: str
    target: str | None
    mode: str
    name: str
    rows: tuple[str, ...] | None
    replicated: tuple[str, ...]
    gather: bool
