"""Where blocks live and functions of blocks run: in this process, or on a dask cluster."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from dask.base import compute, persist
from dask.delayed import Delayed

Handle = Any

#: Called with the workers' addresses about once a second; ends a wait by raising.
Check = Callable[[list[str]], None]


class Site(AbstractContextManager[Any], Protocol):
    """A place that holds blocks behind handles and calls functions on them.

    At the end of its context it lets go of its tasks, whoever still has handles.
    """

    def keep(self, collections: Sequence[Any]) -> list[Any]:
        """Compute collections in one go and keep their blocks here; what they share once."""

    def load(self, blocks: Sequence[Delayed]) -> list[Handle]:
        """Compute lazy blocks and keep them here."""

    def put(self, blocks: Sequence[Any]) -> list[Handle]:
        """Keep blocks that are in this process here."""

    def submit(self, function: Callable[..., Any], *args: Any, **where: Any) -> Handle:
        """Call a function; handles among `args`, or in lists there, stand for blocks."""

    def get(self, handles: Sequence[Handle], check: Check | None = None) -> list[Any]:
        """Bring values into this process, waiting for them."""

    def wait(self, handles: Sequence[Handle], check: Check | None = None) -> None:
        """Wait until every handle stands for a value or an error."""

    def n_workers(self) -> int:
        """How many processes can work at the same time."""

    def spread(
        self, handles: Sequence[Handle], lengths: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Where to call a function of each block, in even shares: keywords of `submit`."""


class LocalSite(nullcontext[None]):
    """The calling process: handles are the blocks themselves."""

    def keep(self, collections: Sequence[Any]) -> list[Any]:
        return list(persist(*collections))

    def load(self, blocks: Sequence[Delayed]) -> list[Handle]:
        return list(compute(*blocks))

    def put(self, blocks: Sequence[Any]) -> list[Handle]:
        return list(blocks)

    def submit(self, function: Callable[..., Any], *args: Any, **where: Any) -> Handle:
        return function(*args)

    def get(self, handles: Sequence[Handle], check: Check | None = None) -> list[Any]:
        return list(handles)

    def wait(self, handles: Sequence[Handle], check: Check | None = None) -> None:
        """Nothing to wait for: `load` and `submit` have called already."""

    def n_workers(self) -> int:
        return 1

    def spread(
        self, handles: Sequence[Handle], lengths: Sequence[int]
    ) -> list[dict[str, Any]]:
        return [{} for _ in handles]
