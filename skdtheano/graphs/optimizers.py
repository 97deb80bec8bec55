r"""Optimizers: from the sums of a minibatch to the next parameters.

Parameters, gradients and moments are packed vectors. With the loss's gradient sum
:math:`G`, the sum of weights :math:`s` and the penalty :math:`\lambda` (``alpha`` for
weights, 0 for intercepts), every rule begins with the gradient that scikit-learn uses,

.. math:: g = (G + \lambda \odot \theta) / s.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from skdtheano import engine
from skdtheano.engine import Variable


@dataclass(frozen=True)
class UpdateGraph:
    """One step of an optimizer.

    Attributes
    ----------
    inputs : list of Variable
        Parameters, gradient sum, penalty (vectors); sum of weights (scalar); the
        optimizer's slots (vectors); its step size and its other scalars.
    outputs : list of Variable
        The next parameters, then the next value of each slot.
    """

    inputs: list[Variable]
    outputs: list[Variable]


class Optimizer(Protocol):
    """A rule for the next parameters; all its numbers are inputs of the graph."""

    @property
    def rule(self) -> str:
        """Name of the graph; optimizers of one name share a compiled function."""

    @property
    def n_slots(self) -> int:
        """Number of moment vectors that the rule keeps."""

    def step_size(self, learning_rate: float, step: int) -> float:
        """Step size of step number `step`, which counts from 1."""

    def scalars(self) -> tuple[float, ...]:
        """Numbers that the graph takes after the step size."""


@dataclass(frozen=True)
class Adam:
    r"""Adam, in the form that folds the bias corrections into the step size.

    .. math::

        m' = \beta_1 m + (1 - \beta_1) g, \quad v' = \beta_2 v + (1 - \beta_2) g^2, \quad
        \theta' = \theta - \eta_t \, m' / (\sqrt{v'} + \epsilon), \quad
        \eta_t = \eta \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, end of
    section 2.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    rule = "adam"
    n_slots = 2

    def step_size(self, learning_rate: float, step: int) -> float:
        return learning_rate * math.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)

    def scalars(self) -> tuple[float, ...]:
        return (self.beta_1, 1 - self.beta_1, self.beta_2, 1 - self.beta_2, self.epsilon)


@dataclass(frozen=True)
class SGD:
    r"""Gradient descent with momentum, Nesterov's or the classical one.

    .. math::

        u' = \mu u - \eta g, \qquad
        \theta' = \theta + u' \quad\text{or, Nesterov's,}\quad
        \theta' = \theta + \mu u' - \eta g

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep
    learning", ICML 2013.
    """

    momentum: float = 0.9
    nesterov: bool = True

    n_slots = 1

    @property
    def rule(self) -> str:
        return "nesterov" if self.nesterov else "momentum"

    def step_size(self, learning_rate: float, step: int) -> float:
        return learning_rate

    def scalars(self) -> tuple[float, ...]:
        return (self.momentum,)


def update_graph(rule: str, dtype: str) -> UpdateGraph:
    """Build the graph of one step.

    Parameters
    ----------
    rule : {"adam", "nesterov", "momentum"}
        An optimizer's `rule`.
    dtype : {"float64", "float32"}
        Of parameters, gradients, slots and scalars.
    """
    theta, gradient_sum, penalty = (
        engine.vector(name, dtype=dtype) for name in ("theta", "gradient_sum", "penalty")
    )
    weight_sum, step_size = (
        engine.scalar(name, dtype=dtype) for name in ("weight_sum", "step_size")
    )
    given = [theta, gradient_sum, penalty, weight_sum]
    gradient = (gradient_sum + penalty * theta) / weight_sum
    if rule == "adam":
        m, v = engine.vector("m", dtype=dtype), engine.vector("v", dtype=dtype)
        beta_1, rest_1, beta_2, rest_2, epsilon = (
            engine.scalar(name, dtype=dtype)
            for name in ("beta_1", "rest_1", "beta_2", "rest_2", "epsilon")
        )
        new_m = beta_1 * m + rest_1 * gradient
        new_v = beta_2 * v + rest_2 * gradient**2
        new_theta = theta - step_size * new_m / (engine.sqrt(new_v) + epsilon)
        return UpdateGraph(
            [*given, m, v, step_size, beta_1, rest_1, beta_2, rest_2, epsilon],
            [new_theta, new_m, new_v],
        )
    velocity = engine.vector("velocity", dtype=dtype)
    momentum = engine.scalar("momentum", dtype=dtype)
    change = step_size * gradient
    new_velocity = momentum * velocity - change
    if rule == "nesterov":
        new_theta = theta + (momentum * new_velocity - change)
    else:
        new_theta = theta + new_velocity
    return UpdateGraph([*given, velocity, step_size, momentum], [new_theta, new_velocity])
