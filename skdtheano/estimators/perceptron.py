"""What the classifier and the regressor share: parameters, fit, and the fitted state."""

import copy
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from distributed import Client
from sklearn.base import BaseEstimator, _fit_context, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions

from skdtheano.course import Course, Progress, Schedule
from skdtheano.estimators.batch_order import batch_order, batch_rows
from skdtheano.estimators.checkpoints import FitCheckpoint, check_checkpoint
from skdtheano.estimators.fitted_state import (
    OptimizerState,
    initialize,
    keep,
    new_rule,
    optimizer_of,
    progress_of,
)
from skdtheano.estimators.reading import Targets, is_distributed
from skdtheano.estimators.training_data import (
    Shape,
    TrainingData,
    data_at_site,
    data_in_memory,
)
from skdtheano.graphs.network import Network
from skdtheano.runtime.clients import outside_the_slots, resolve_client
from skdtheano.runtime.cluster import ClusterSite
from skdtheano.runtime.crew import Trial, crew_size
from skdtheano.runtime.failures import EndedEarly
from skdtheano.runtime.local import LocalRuntime
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import HeldOut, Order
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.program import ProgramSpec, check_mode
from skdtheano.runtime.rounds import ClusterRuntime
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.shares import Shares
from skdtheano.runtime.sites import LocalSite, Site
from skdtheano.runtime.steps import StepSettings
from skdtheano.training import (
    FullBatch,
    Runtime,
    fit_lbfgs,
    fit_stochastic,
)


def takes_steps(estimator: Any) -> bool:
    """Whether the solver trains by minibatches, and so by `partial_fit`.

    Raises
    ------
    AttributeError
        If it does not.
    """
    if estimator.solver == "lbfgs":
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. lbfgs is not stochastic."
        )
    return True


class DistributedPerceptron(BaseEstimator, ABC):
    """A multi-layer perceptron that trains here or on a dask cluster."""

    _parameter_constraints: dict[str, Any] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions({"identity", "logistic", "tanh", "relu"})],
        "solver": [StrOptions({"lbfgs", "sgd", "adam"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean", StrOptions({"blocks"})],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "client": "no_validation",
        "checkpoint": [str, os.PathLike, None],
        "checkpoint_every": [Interval(Integral, 1, None, closed="left"), str],
        "mode": [str, None],
        "sync_every": [Interval(Integral, 1, None, closed="left")],
        "outer_momentum": [Interval(Real, 0, 1, closed="left")],
    }

    _classifies: bool

    @abstractmethod
    def _targets(self, going_on: bool) -> Targets:
        """How to read y of a dask fit."""

    @abstractmethod
    def _keep_targets(self, targets: Targets) -> None:
        """Set the fitted attributes that describe y."""

    @abstractmethod
    def _data_in_memory(self, X: Any, y: Any, anew: bool, going_on: bool) -> tuple[Any, ...]:
        """Validate as scikit-learn does; return X, y, number of outputs and encoder."""

    @abstractmethod
    def _score_of(self, sums: ScoreSums) -> float:
        """The score of rows whose sums these are, as `score` defines it."""

    @abstractmethod
    def _output(self) -> tuple[str, str]:
        """Output activation, and the name of the loss that is differentiated."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Fit the model to rows X and targets y.

        Parameters
        ----------
        X : array-like, sparse matrix, dask Array or dask DataFrame of shape \
                (n_samples, n_features)
            The rows. dask collections may have unknown chunk sizes, several chunks of
            columns, empty blocks and sparse blocks. They are trained on where they lie.
        y : array-like, dask Array, DataFrame or Series of shape (n_samples,) or \
                (n_samples, n_outputs)
            The targets, in the order of the rows; its chunks need not be those of X.
        sample_weight : array-like, dask Array or Series of shape (n_samples,), default=None
            Row weights. In the sums of losses and gradients, and in scores, a row of
            weight 2 counts as two rows and one of weight 0 as none; a minibatch has
            `batch_size` rows whatever their weights.

        Returns
        -------
        self : object
            The fitted estimator. The result does not depend on chunks or workers, up to
            the rounding of sums.

        Raises
        ------
        ValueError, TypeError
            For data or parameters that cannot be used; the message names the argument and
            what to do.
        """
        return self._fit(X, y, sample_weight, going_on=False)

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, going_on: bool
    ) -> "DistributedPerceptron":
        anew = not hasattr(self, "coefs_") or not (self.warm_start or going_on)
        self._check_parameters(going_on)
        site = self._site(X, y, sample_weight)
        # A fit in this process computes in its task's slot: without it, the next fit of a
        # search would begin beside it.
        slots = nullcontext() if isinstance(site, LocalSite) else outside_the_slots()
        with self._unchanged_by_failure(), slots, site:
            self._train(X, y, sample_weight, site, anew, going_on)
        return self

    @contextmanager
    def _unchanged_by_failure(self) -> Iterator[None]:
        """A fit that fails leaves the model as it was, unless it has learned something."""
        before = dict(vars(self))
        try:
            yield
        except BaseException as error:
            if isinstance(error, EndedEarly) and error.model_kept:
                raise
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _train(
        self, X: Any, y: Any, sample_weight: Any, site: Site, anew: bool, going_on: bool
    ) -> None:
        checkpoint = None if self.checkpoint is None else FitCheckpoint(self)
        data = self._read(X, y, sample_weight, site, anew, going_on)
        rng = check_random_state(self.random_state)
        if checkpoint is not None:
            rng = checkpoint.begin(data, rng)
        model, state, progress, optimizer = self._begin(data, rng, anew, going_on)
        if optimizer is None:
            self._train_full_batch(data, model, state)
        else:
            self._train_by_steps(
                data, model, state, progress, optimizer, rng, anew, going_on, checkpoint
            )
        if not all(np.isfinite(array).all() for array in self.coefs_ + self.intercepts_):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain "
                "large values and need to be preprocessed."
            )

    def _check_parameters(self, going_on: bool) -> None:
        sizes = self._hidden_sizes()
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        check_mode(self.mode)
        if self.sync_every > 1 and self.solver == "lbfgs":
            raise ValueError(
                f"sync_every={self.sync_every} is for solver='adam' and 'sgd': L-BFGS takes "
                "sums over all rows. Use sync_every=1."
            )
        if self.outer_momentum and self.sync_every == 1:
            raise ValueError(
                f"outer_momentum={self.outer_momentum:g} is for averages of local steps. Give "
                "sync_every=2 or more as well, or outer_momentum=0."
            )
        check_checkpoint(self, going_on)
        if self.early_stopping and going_on:
            raise ValueError("partial_fit does not support early_stopping=True")

    def _hidden_sizes(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
        try:
            return [operator.index(size) for size in sizes]
        except TypeError as error:
            raise TypeError(
                f"hidden_layer_sizes={self.hidden_layer_sizes!r} holds something that is no "
                "whole number. Give the number of units of each hidden layer, as in (100, 50)."
            ) from error

    def _site(self, *arguments: Any) -> Site:
        """Where to train: a cluster for dask collections or an explicit client."""
        if self.client is None and not is_distributed(*arguments):
            return LocalSite()
        client = resolve_client(self.client)
        return LocalSite() if client is None else ClusterSite(client)

    def _read(
        self, X: Any, y: Any, sample_weight: Any, site: Site, anew: bool, going_on: bool
    ) -> TrainingData:
        if isinstance(site, LocalSite) and not is_distributed(X, y, sample_weight):
            X, y, n_outputs, encode = self._data_in_memory(X, y, anew, going_on)
            return data_in_memory(X, y, sample_weight, n_outputs, encode, site)
        targets = self._targets(going_on)

        def choose_crew(shape: Shape) -> None:
            self._keep_targets(targets)
            if isinstance(site, ClusterSite) and self.solver != "lbfgs":
                site.crew = partial(crew_size, site, self._trial(shape), shape.nbytes)

        return data_at_site(self, X, y, sample_weight, targets, site, anew, choose_crew)

    def _begin(
        self, data: TrainingData, rng: np.random.RandomState, anew: bool, going_on: bool
    ) -> tuple[Model, TrainState, Progress, OptimizerState | None]:
        """Parameters, history and optimizer: fresh ones, or those of the last fit."""
        units = (data.n_features, *self._hidden_sizes(), data.n_outputs)
        layout = Layout(units)
        if anew:
            initialize(self, layout, data.row_dtype, rng)
            self.out_activation_ = self._output()[0]
        self.n_outputs_ = data.n_outputs
        dtype = "float64" if self.solver == "lbfgs" else self.coefs_[0].dtype.name
        theta = layout.pack([*self.coefs_, *self.intercepts_], np.dtype(dtype))
        optimizer = optimizer_of(self, theta, going_on)
        rule = None if optimizer is None else optimizer.rule.rule
        model = self._model(data.shape, dtype, rule)
        progress = progress_of(self)
        if optimizer is None:
            return model, TrainState(theta), progress, None
        progress.learning_rate = optimizer.learning_rate
        state = TrainState(theta, list(optimizer.slots), optimizer.step)
        return model, state, progress, optimizer

    def _model(self, shape: Shape, dtype: str, rule: str | None) -> Model:
        units = (shape.n_features, *self._hidden_sizes(), shape.n_outputs)
        output, loss = self._output()
        network = Network(
            n_products=len(units) - 1,
            activation=self.activation,
            output=output,
            row_dtype=shape.row_dtype,
            dtype=dtype,
            sparse=shape.sparse,
        )
        return Model(ProgramSpec(network, loss, rule, check_mode(self.mode)), Layout(units))

    def _trial(self, shape: Shape) -> Trial:
        """Steps like those of this fit, to be tried on one worker and on several."""
        rule = new_rule(self)
        model = self._model(shape, shape.row_dtype, rule.rule)
        batch_size = batch_rows(self, shape.n_rows)
        settings = StepSettings(rule, 1e-3, 0.0, epoch=0, may_diverge=True)
        return Trial(model, batch_size, settings)

    def _train_by_steps(
        self,
        data: TrainingData,
        model: Model,
        state: TrainState,
        progress: Progress,
        optimizer: OptimizerState,
        rng: np.random.RandomState,
        anew: bool,
        going_on: bool,
        checkpoint: FitCheckpoint | None,
    ) -> None:
        order, held_out = batch_order(self, data, rng, self._classifies)
        initial, n_before, best = state.theta, progress.n_iter, None
        if checkpoint is not None:
            state, best = checkpoint.resume(state, progress, order)
        course = self._course(optimizer, progress, order)
        kind = (order.batch_size, order.in_windows, self.sync_every)
        with _runtime(data, model, state, best, held_out, order.in_windows, kind) as runtime:

            def take_over(or_initial: bool) -> None:
                final = runtime.state()
                theta = initial if self.early_stopping and or_initial else final.theta
                if self.early_stopping and (best := runtime.best()) is not None:
                    theta = best
                self._keep_learned(model, theta, progress, optimizer, final)

            try:
                save = None if checkpoint is None else checkpoint.saver(runtime)
                fit_stochastic(runtime, order, course, self._score_of, going_on, save)
            except EndedEarly as failure:
                if progress.n_iter > n_before:
                    epochs = f"{progress.n_iter} epochs"
                    try:
                        take_over(or_initial=False)
                        failure.model_kept = True
                        said = f"The model has what it learned in {epochs} before."
                    except Exception as error:
                        said = f"What it learned in {epochs} is lost: {error}"
                    failure.add_note(said)
                raise
            # Without any finite score scikit-learn goes back to where a first fit began.
            take_over(or_initial=anew)

    def _keep_learned(
        self,
        model: Model,
        theta: np.ndarray,
        progress: Progress,
        optimizer: OptimizerState,
        final: TrainState,
    ) -> None:
        """Set the fitted attributes that training by steps has found."""
        self.coefs_, self.intercepts_ = model.layout.unpack(theta)
        keep(self, progress, optimizer, final)

    def _course(self, optimizer: OptimizerState, progress: Progress, order: Order) -> Course:
        schedule = Schedule(
            optimizer=optimizer.rule,
            learning_rate_init=optimizer.learning_rate_init,
            learning_rate=optimizer.schedule,
            power_t=optimizer.power_t,
            alpha=float(self.alpha),
            max_iter=self.max_iter,
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
            early_stopping=bool(self.early_stopping),
            verbose=bool(self.verbose),
            sync_every=self.sync_every,
            outer_momentum=self.outer_momentum,
        )
        return Course(schedule, progress, order.n_rows)

    def _train_full_batch(self, data: TrainingData, model: Model, state: TrainState) -> None:
        limits = FullBatch(self.alpha, self.max_iter, self.max_fun, self.tol)
        with _runtime(data, model, state, None, None) as runtime:
            theta, self.loss_, self.n_iter_ = fit_lbfgs(
                runtime, state.theta, model.layout, limits
            )
        self.coefs_, self.intercepts_ = model.layout.unpack(theta)

    def __getstate__(self) -> dict[str, Any]:
        # A client is a connection of this process; what a fit learned does not need it.
        return {**super().__getstate__(), "client": None}

    @classmethod
    @cache
    def _get_param_names(cls) -> list[str]:
        # A search asks five times for each fit, and reading a signature takes 50 us.
        names: list[str] = super()._get_param_names()
        return names

    def __sklearn_clone__(self) -> "DistributedPerceptron":
        # Clones share the client: it cannot be copied, and is not learned.
        parameters = self.get_params(deep=False)
        client: Client | None = parameters.pop("client")
        copied = {name: clone(value, safe=False) for name, value in parameters.items()}
        fresh = type(self)(**copied, client=client)
        if hasattr(self, "_metadata_request"):
            fresh._metadata_request = copy.deepcopy(self._metadata_request)
        return fresh

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _runtime(
    data: TrainingData,
    model: Model,
    state: TrainState,
    best: np.ndarray | None,
    held_out: HeldOut | None,
    in_windows: bool = False,
    kind: Hashable = None,
) -> Runtime:
    if isinstance(data.site, ClusterSite):
        shares = Shares(data.site, data.handles, data.lengths, data.numbers, in_windows)
        return ClusterRuntime(model, shares, state, best, held_out, kind)
    return LocalRuntime(model, data.handles, data.numbers, state, best, held_out)
