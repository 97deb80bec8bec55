"""From the values of blocks to the value of the whole, by the verb that a plan names."""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

#: What a verb makes of two values; each is associative, so blocks combine in a tree.
PAIRS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "all": np.logical_and,
    "any": np.logical_or,
    "same": lambda first, _: first,
}

Verb = tuple[str, int | None]


def combine(verb: Verb, values: Sequence[np.ndarray]) -> np.ndarray:
    """One value from those of neighbouring blocks, in their order.

    Parameters
    ----------
    verb : tuple of (str, int or None)
        As in `skdtheano.graphs.plan.Combine`.
    values : sequence of ndarray
        Of one shape; for ``"rows"``, but for the axis of the rows.
    """
    name, axis = verb
    if name == "rows":
        assert axis is not None
        return np.concatenate(values, axis=axis)
    if name == "shape":
        assert axis is not None
        whole = np.array(values[0])
        whole[axis] = sum(int(value[axis]) for value in values)
        return whole
    whole = reduce(PAIRS[name], values)
    return np.asarray(whole, dtype=values[0].dtype)


def of_no_rows(verb: Verb, like: np.ndarray) -> np.ndarray | None:
    """What a block without rows brings: nothing that changes the whole.

    Parameters
    ----------
    verb : tuple of (str, int or None)
    like : ndarray
        What a block with one row brings.

    Returns
    -------
    ndarray or None
        None where there is no such value, as there is no maximum of nothing.
    """
    name, axis = verb
    if name == "rows":
        assert axis is not None
        return np.take(like, [], axis=axis)
    if name == "shape":
        none = np.array(like)
        none[axis] = 0
        return none
    neutral = getattr(PAIRS[name], "identity", None)
    return None if neutral is None else np.full_like(like, neutral)
