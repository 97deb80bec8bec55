"""A fully connected network as a graph: parameters and rows in, one output row each out."""

from collections.abc import Callable
from dataclasses import dataclass

from skdtheano import engine
from skdtheano.engine import Variable


def _identity(z: Variable) -> Variable:
    return z


def _relu(z: Variable) -> Variable:
    # maximum(z, 0) has the derivative 1 at z = 0; scikit-learn's is 0 there, as switch's.
    # And z <= 0 is false for NaN, which must not become 0.
    return engine.switch(z <= 0, 0, z)


def _softmax(z: Variable) -> Variable:
    # Without the shift by the row's maximum, exp overflows at z = 710 in float64.
    shifted = engine.exp(z - engine.maximum_over(z, (1,)))
    return shifted / shifted.sum(axis=1, keepdims=True)


#: Hidden activations, by scikit-learn's names.
ACTIVATIONS: dict[str, Callable[[Variable], Variable]] = {
    "identity": _identity,
    "logistic": engine.sigmoid,
    "tanh": engine.tanh,
    "relu": _relu,
}

#: Output activations: the inverse of the canonical link of each loss.
OUTPUTS: dict[str, Callable[[Variable], Variable]] = {
    "identity": _identity,
    "logistic": engine.sigmoid,
    "softmax": _softmax,
    "exp": engine.exp,
}


@dataclass(frozen=True)
class Network:
    r"""What a network's graph depends on; layer sizes are not among it.

    .. math::

        h_0 = X, \qquad z_i = h_{i-1} W_i + b_i, \qquad
        h_i = f(z_i), \qquad \hat Y = g(z_n)

    Parameters
    ----------
    n_products : int
        Number :math:`n` of weight matrices: hidden layers plus one.
    activation : {"identity", "logistic", "tanh", "relu"}
        :math:`f`.
    output : {"identity", "logistic", "softmax", "exp"}
        :math:`g`.
    row_dtype, dtype : {"float64", "float32"}
        Of the rows :math:`X`, and of the parameters.
    sparse : bool
        Rows are sparse matrices. The graph then begins after the first product,
        :math:`X W_1`, which SciPy takes: PyTensor's numba and JAX backends have no
        sparse product, and the dense part of the graph is the same.
    """

    n_products: int
    activation: str
    output: str
    row_dtype: str
    dtype: str
    sparse: bool = False


@dataclass(frozen=True)
class NetworkGraph:
    """The symbols of a `Network`.

    Attributes
    ----------
    rows : Variable
        Matrix of input rows, shape (n, n_features); the first product
        :math:`X W_1`, shape (n, n_hidden), for a sparse network.
    coefs, intercepts : tuple of Variable
        The parameters, in the order of the layers. A sparse network's first weight
        matrix is no input of its graph.
    scores : Variable
        :math:`z_n`, shape (n, n_outputs).
    outputs : Variable
        :math:`g(z_n)`, shape (n, n_outputs).
    """

    rows: Variable
    coefs: tuple[Variable, ...]
    intercepts: tuple[Variable, ...]
    scores: Variable
    outputs: Variable

    @property
    def parameters(self) -> tuple[Variable, ...]:
        return self.coefs + self.intercepts


def network_graph(network: Network) -> NetworkGraph:
    """Build the symbols of a network."""
    activation = ACTIVATIONS[network.activation]
    rows = engine.matrix("rows", dtype=network.dtype if network.sparse else network.row_dtype)
    coefs: list[Variable] = []
    intercepts: list[Variable] = []
    hidden = rows
    for layer in range(network.n_products):
        if layer == 0 and network.sparse:
            product = rows
        else:
            coefs.append(engine.matrix(f"coef_{layer}", dtype=network.dtype))
            product = engine.dot(hidden, coefs[-1])
        intercepts.append(engine.vector(f"intercept_{layer}", dtype=network.dtype))
        scores = product + intercepts[-1].dimshuffle("x", 0)
        hidden = activation(scores)
    return NetworkGraph(
        rows=rows,
        coefs=tuple(coefs),
        intercepts=tuple(intercepts),
        scores=scores,
        outputs=OUTPUTS[network.output](scores),
    )
