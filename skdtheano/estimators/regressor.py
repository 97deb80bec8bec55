"""`DistributedMLPRegressor`."""

from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import RegressorMixin, _fit_context
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from skdtheano.estimators.numeric_targets import (
    NumberEncoder,
    NumberTargets,
    TrueNumbers,
    check_sign,
)
from skdtheano.estimators.perceptron import DistributedPerceptron, takes_steps
from skdtheano.estimators.prediction import network_outputs, predict_blocks, score_collections
from skdtheano.estimators.reading import is_distributed
from skdtheano.notices import warn_user
from skdtheano.runtime.scores import ScoreSums, r2, regression_sums


class DistributedMLPRegressor(RegressorMixin, DistributedPerceptron):
    r"""Multi-layer perceptron regressor, trained in this process or on a dask cluster.

    A drop-in for `sklearn.neural_network.MLPRegressor`: the same parameters, attributes
    and numbers, whether the rows are a NumPy array or a dask collection on many workers.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}, default="squared_error"
        Half the squared error with an identity output, or half the Poisson deviance,
        :math:`y \log(y / \hat y) - y + \hat y`, with an exponential output.
    hidden_layer_sizes : array-like of int or int, default=(100,)
        Units of each hidden layer. ``()`` has none: a linear model.
    activation : {"identity", "logistic", "tanh", "relu"}, default="relu"
        Of the hidden layers: :math:`f(z) = z`, :math:`1 / (1 + e^{-z})`,
        :math:`\tanh z` or :math:`\max(0, z)`.
    solver : {"lbfgs", "sgd", "adam"}, default="adam"
        ``"sgd"`` and ``"adam"`` step after each minibatch; ``"lbfgs"`` uses the loss of
        all rows at each evaluation.
    alpha : float, default=0.0001
        Strength of the L2 penalty, :math:`\frac{\alpha}{2 s} \sum_i \|W_i\|^2` with
        :math:`s` the sum of weights of the rows of the minibatch.
    batch_size : int or "auto", default="auto"
        Rows of a minibatch, over the whole cluster; ``"auto"`` is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive"}, default="constant"
        How SGD's step size changes: not; as ``learning_rate_init / (t_ + 1)**power_t``
        after each epoch; divided by 5 when training stalls.
    learning_rate_init : float, default=0.001
        Step size to begin with.
    power_t : float, default=0.5
        Exponent of ``"invscaling"``.
    max_iter : int, default=200
        Epochs at most; for L-BFGS, iterations.
    shuffle : bool or "blocks", default=True
        Draw a new order of the rows for each epoch. True permutes all rows, as
        scikit-learn does. ``"blocks"`` mixes the rows of some blocks at a time, drawn from
        the whole table, and reads the others when it needs them: for tables larger than
        the workers' memory. It depends on the lengths of the blocks, and is used by itself
        above 2**27 rows, with a logged note.
    random_state : int, RandomState or None, default=None
        Of initial parameters, held-out rows and the order of rows. The same int gives the
        same model on any number of chunks and workers, up to the rounding of sums.
    tol : float, default=1e-4
        An epoch that does not improve the loss, or the score, by this much counts as one
        without improvement.
    verbose : bool or int, default=False
        Print the loss of each epoch, where `fit` was called.
    warm_start : bool, default=False
        Go on from the last fit's parameters.
    momentum : float, default=0.9
        Of SGD, from 0 to 1.
    nesterovs_momentum : bool, default=True
        Use Nesterov's momentum.
    early_stopping : bool, default=False
        Hold rows out, score them after each epoch, stop when the score does not improve,
        and keep the parameters with the best score. The score is exact over the whole
        cluster.
    validation_fraction : float, default=0.1
        Fraction of the rows to hold out.
    beta_1, beta_2 : float, default=0.9 and 0.999
        Decay of Adam's moments.
    epsilon : float, default=1e-8
        Keeps Adam's division finite.
    n_iter_no_change : int or np.inf, default=10
        Stop after more epochs than this without improvement.
    max_fun : int, default=15000
        Evaluations of the loss at most, for L-BFGS.
    client : distributed.Client or None, default=None
        Where to train. None: dask collections on the current client (in this process if
        there is none), data in memory in this process. With a client, data in memory is
        cut up and trained on its cluster too. It is not pickled.
    mode : str or None, default=None
        How graphs are run. None is ``"NUMPY"``: as calls of NumPy into arrays that were
        made before, with nothing to compile. Others are the engine's compile modes, such as
        ``"NUMBA"``, which compiles for some 20 s at first.
    checkpoint : str, os.PathLike or None, default=None
        Where `fit` keeps how far it is: a file, or an address that fsspec knows, such as
        ``"s3://bucket/fit.npz"``. A `fit` of the same parameters and rows that finds one
        there goes on from it, and ends as if it had never been interrupted, bit for bit on
        as many workers; one that has finished is not trained again, unless `max_iter` has
        been raised. A file that is damaged or of another fit is refused. Not for L-BFGS,
        `warm_start` and `partial_fit`, nor for the candidates of one search, which would
        share the file.
    checkpoint_every : int or str, default="30 s"
        Write after so many epochs or, as by ``"5 minutes"``, after the first epoch that
        ends so much later than the last time; and always after the last epoch.
    sync_every : int, default=1
        Minibatches from one exchange between workers to the next. 1 is the exact mode. With
        more, each worker takes its steps on its own rows of the minibatches, and their
        parameters are averaged every so many, weighted by rows ("local SGD"): for networks
        that are slow. The result then depends on the number of workers and on which rows
        each holds; it is that of the exact mode where one worker takes part.
    outer_momentum : float, default=0.0
        Nesterov momentum of these averages, as in DiLoCo, where it is 0.9.

    Attributes
    ----------
    coefs_ : list of ndarray of shape (fan_in, fan_out)
        Weights by layer.
    intercepts_ : list of ndarray of shape (fan_out,)
        Intercepts by layer.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Names of the columns, where they are all strings.
    n_iter_ : int
        Epochs, or L-BFGS iterations, of the last fit.
    n_layers_ : int
        Layers, the input's and the output's included.
    n_outputs_ : int
        Units of the output layer.
    out_activation_ : str
        Activation of the output layer.
    loss_ : float
        Last loss: its mean over the minibatches of the last epoch, each before its step.
    loss_curve_ : list of float
        `loss_` by epoch; not for L-BFGS.
    best_loss_ : float or None
        Smallest of `loss_curve_`; None with `early_stopping`.
    validation_scores_ : list of float or None
        Score of the held-out rows by epoch.
    best_validation_score_ : float or None
        Largest of `validation_scores_`.
    t_ : int
        Rows seen in training: epochs times rows.

    See Also
    --------
    DistributedMLPClassifier : The same network for classes.

    Notes
    -----
    For several outputs the squared error that is reported is a mean over the outputs, and
    the gradient is that of their sum, as in scikit-learn.

    Examples
    --------
    >>> import numpy as np
    >>> from skdtheano import DistributedMLPRegressor
    >>> X = np.linspace(-2, 2, 400).reshape(-1, 1)
    >>> reg = DistributedMLPRegressor(hidden_layer_sizes=(30,), solver="lbfgs", max_iter=300,
    ...                               activation="tanh", random_state=0)
    >>> reg.fit(X, np.sin(2 * X.ravel())).score(X, np.sin(2 * X.ravel())) > 0.99
    True
    """

    _parameter_constraints: dict[str, Any] = {
        **DistributedPerceptron._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson"})],
    }

    _classifies = False

    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        client=None,
        mode=None,
        checkpoint=None,
        checkpoint_every="30 s",
        sync_every=1,
        outer_momentum=0.0,
    ):
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.client = client
        self.mode = mode
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.sync_every = sync_every
        self.outer_momentum = outer_momentum

    @available_if(takes_steps)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Train one more epoch, on the rows given.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        self : object
        """
        return self._fit(X, y, sample_weight, going_on=True)

    def predict(self, X):
        """Predict the targets.

        Parameters
        ----------
        X : array-like, sparse matrix, dask Array or DataFrame of shape \
                (n_samples, n_features)

        Returns
        -------
        ndarray or dask Array of shape (n_samples,) or (n_samples, n_outputs)
            Lazy, with the chunks of X, for dask input.
        """
        if is_distributed(X):
            return predict_blocks(self, X, "predict")
        check_is_fitted(self)
        outputs = network_outputs(self, X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def score(self, X, y, sample_weight=None):
        """Coefficient of determination, R², a mean over the outputs.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`. Blocks of dask collections are scored where they lie.

        Returns
        -------
        float
        """
        if is_distributed(X, y, sample_weight):
            check_is_fitted(self)
            targets = TrueNumbers(self.n_outputs_)
            return score_collections(
                self, X, y, sample_weight, targets, r2_score, self._score_of
            )
        return super().score(X, y, sample_weight)

    def _score_sums(self, predicted: np.ndarray, truth: Any, weights: np.ndarray) -> ScoreSums:
        return regression_sums(truth, predicted.reshape(truth.shape), weights)

    def _score_of(self, sums: ScoreSums) -> float:
        if sums.n_rows < 2:
            warn_user(
                "R^2 score is not well-defined with less than two samples.",
                UndefinedMetricWarning,
            )
        return r2(sums)

    def _targets(self, going_on: bool) -> NumberTargets:
        return NumberTargets(self.loss)

    def _keep_targets(self, targets: Any) -> None:
        """Nothing is learned of numeric targets."""

    def _data_in_memory(self, X: Any, y: Any, anew: bool, going_on: bool) -> tuple[Any, ...]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=(np.float64, np.float32),
            reset=anew,
        )
        if scipy.sparse.issparse(y):
            raise TypeError(
                f"y is a sparse {type(y).__name__}, and targets to regress on are dense. Give "
                "y.toarray()."
            )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if y.dtype.kind not in "fiub":
            raise ValueError(
                f"y has the dtype {y.dtype}, which is not a number's. Convert it before fit, "
                "for example with astype('float64'), or use DistributedMLPClassifier for "
                "classes."
            )
        check_sign(self.loss, bool((y < 0).any()))
        n_outputs = 1 if y.ndim == 1 else y.shape[1]
        return X, y, n_outputs, NumberEncoder(n_outputs)

    def _output(self) -> tuple[str, str]:
        return ("exp", "poisson") if self.loss == "poisson" else ("identity", "squared_error")
