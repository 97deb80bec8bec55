r"""Per-row losses, and the sums over rows that training needs.

Every loss here is paired with its canonical link, so that its derivative by the scores
:math:`z` of a row is :math:`\hat y - y` (McCullagh & Nelder, *Generalized Linear Models*,
1989, section 2.5). The gradient starts from that difference. It therefore does not see
the clipping that keeps the *reported* log-loss finite, and the mean over outputs that the
reported squared error has: both as in scikit-learn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skdtheano import engine
from skdtheano.engine import Variable
from skdtheano.graphs.network import Network, network_graph
from skdtheano.graphs.placement import REPLICATED, Rows
from skdtheano.graphs.splitting import split


def _squared_error(p: Variable, y: Variable) -> Variable:
    return 0.5 * ((y - p) ** 2).mean(axis=1)


def _poisson(p: Variable, y: Variable) -> Variable:
    # y log(y / p) tends to 0 with y; the logarithm is kept away from 0 / p.
    positive = engine.switch(y > 0, y, p)
    return (y * engine.log(positive / p) - y + p).sum(axis=1)


def _clipped(p: Variable) -> Variable:
    eps = np.finfo(p.dtype).eps
    # minimum(maximum()) and not clip: without C, Theano's clip is a Python loop (10 ms
    # a step instead of 1).
    return engine.minimum(
        engine.maximum(p, np.asarray(eps, p.dtype)), np.asarray(1 - eps, p.dtype)
    )


def _log_loss(p: Variable, y: Variable) -> Variable:
    return -(y * engine.log(_clipped(p))).sum(axis=1)


def _binary_log_loss(p: Variable, y: Variable) -> Variable:
    clipped = _clipped(p)
    likelihood = y * engine.log(clipped) + (1 - y) * engine.log(1 - clipped)
    return -likelihood.sum(axis=1)


#: Loss of each row from outputs and targets, both (n, n_outputs), by name; the output
#: activation that is its canonical inverse link.
LOSSES: dict[str, tuple[Callable[[Variable, Variable], Variable], str]] = {
    "squared_error": (_squared_error, "identity"),
    "poisson": (_poisson, "exp"),
    "log_loss": (_log_loss, "softmax"),
    "binary_log_loss": (_binary_log_loss, "logistic"),
}


@dataclass(frozen=True)
class SumsGraph:
    r"""The sums of one block of rows; sums of blocks add up to those of all rows.

    .. math::

        L = \sum_r w_r \, \ell(\hat y_r, y_r), \qquad
        G = \sum_r w_r \, \nabla_\theta \ell(\hat y_r, y_r)

    Attributes
    ----------
    inputs : list of Variable
        Rows, targets (n, n_outputs), weights (n,), then the network's parameters.
    outputs : list of Variable
        :math:`L`, then :math:`G` by parameter. A sparse network gives
        :math:`\partial L / \partial (X W_1)`, shape (n, n_hidden), in the place of the
        first weight matrix's gradient.
    """

    inputs: list[Variable]
    outputs: list[Variable]


def sums_graph(network: Network, loss: str) -> SumsGraph:
    """Build the graph of a block's loss sum and gradient sums."""
    row_loss, link = LOSSES[loss]
    if network.output != link:
        raise ValueError(
            f"loss={loss!r} belongs to the output activation {link!r}, got {network.output!r}."
        )
    graph = network_graph(network)
    targets = engine.matrix("targets", dtype=network.dtype)
    weights = engine.vector("weights", dtype=network.dtype)
    total = engine.dot(weights, row_loss(graph.outputs, targets))
    residual = (graph.outputs - targets) * weights.dimshuffle(0, "x")
    first = [graph.rows] if network.sparse else []
    gradients = engine.gradients(
        {graph.scores: residual}, [*first, *graph.coefs, *graph.intercepts]
    )
    return SumsGraph(
        inputs=[graph.rows, targets, weights, *graph.parameters],
        outputs=[total, *gradients],
    )


def block_graph(network: Network, loss: str) -> SumsGraph:
    """What a block of rows computes of `sums_graph`, as its plan says.

    The plan is the one that `skdtheano.function` would run as a dask graph: cut by rows, it
    is one stage, whose results are added up. Training adds them up from worker to worker.

    Raises
    ------
    ValueError
        If the graph takes more than one sum over the blocks.
    """
    graph = sums_graph(network, loss)
    n_parameters = len(graph.inputs) - 3
    plan = split(graph.inputs, graph.outputs, [Rows(0)] * 3 + [REPLICATED] * n_parameters)
    [stage, *more] = plan.stages
    results = {result.symbol: result for result in stage.block.results}
    odd = {r.combine.verb for r in results.values() if r.combine is not None} - {"sum"}
    several = any(s.block.results for s in more) or stage.once.results
    if odd or several or plan.n_rows is not None:
        raise ValueError(f"The loss {loss!r} is no sum over rows: its plan is {plan}.")
    return SumsGraph(
        inputs=list(plan.inputs),
        outputs=[results[symbol].value for symbol in plan.outputs],
    )
