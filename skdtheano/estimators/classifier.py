"""`DistributedMLPClassifier`."""

from typing import Any

import numpy as np
from dask.base import is_dask_collection
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    type_of_target,
    unique_labels,
)
from sklearn.utils.validation import check_is_fitted, validate_data

from skdtheano.estimators.labels import (
    LabelEncoder,
    LabelTargets,
    TrueLabels,
    check_known,
    n_outputs_of,
)
from skdtheano.estimators.perceptron import DistributedPerceptron, takes_steps
from skdtheano.estimators.prediction import network_outputs, predict_blocks, score_collections
from skdtheano.estimators.reading import is_distributed
from skdtheano.runtime.scores import ScoreSums, accuracy, label_sums


class DistributedMLPClassifier(ClassifierMixin, DistributedPerceptron):
    r"""Multi-layer perceptron classifier, trained in this process or on a dask cluster.

    A drop-in for `sklearn.neural_network.MLPClassifier`: the same parameters, attributes
    and numbers, whether the rows are a NumPy array or a dask collection on many workers.
    It minimises the penalised log-loss,

    .. math:: \frac{1}{s} \sum_r w_r \ell(\hat y_r, y_r) + \frac{\alpha}{2 s} \sum_i \|W_i\|^2,

    by a softmax for several classes, and by a logistic output for two classes or for each
    label of an indicator matrix.

    Parameters
    ----------
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
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
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
    DistributedMLPRegressor : The same network for numeric targets.

    References
    ----------
    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010. Kingma & Ba, "Adam: a method for stochastic optimization",
    ICLR 2015.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from skdtheano import DistributedMLPClassifier
    >>> X, y = make_moons(400, noise=0.1, random_state=0)
    >>> clf = DistributedMLPClassifier((20,), max_iter=300, batch_size=50,
    ...                                learning_rate_init=0.01, random_state=0)
    >>> clf.fit(X, y).score(X, y) > 0.98
    True

    The same rows as a dask array give the same model:

    >>> import dask.array as da
    >>> import numpy as np
    >>> again = clf.__sklearn_clone__().fit(da.from_array(X, chunks=(150, 2)), y)
    >>> np.allclose(again.coefs_[0], clf.coefs_[0], rtol=1e-7)
    True
    """

    _classifies = True

    def __init__(
        self,
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
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train one more epoch, on the rows given.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes there will be. Needed in the first call, if no `fit` came before;
            `y` need not hold all of them.

        Returns
        -------
        self : object
        """
        with self._unchanged_by_failure():
            if _check_partial_fit_first_call(self, classes):
                known = indicator_classes(y)
                self._label_binarizer = LabelBinarizer().fit(
                    classes if known is None else known
                )
            return self._fit(X, y, sample_weight, going_on=True)

    def predict(self, X):
        """Predict class labels.

        Parameters
        ----------
        X : array-like, sparse matrix, dask Array or DataFrame of shape \
                (n_samples, n_features)

        Returns
        -------
        ndarray or dask Array of shape (n_samples,) or (n_samples, n_classes)
            Labels, or an indicator matrix. Lazy, with the chunks of X, for dask input.
        """
        if is_distributed(X):
            return predict_blocks(self, X, "predict")
        check_is_fitted(self)
        outputs = network_outputs(self, X)
        if self._label_binarizer.y_type_ == "multiclass":
            # As `inverse_transform` does, which takes 0.1 ms for its checks.
            return self.classes_.take(outputs.argmax(axis=1), mode="clip")
        if self.n_outputs_ == 1:
            outputs = outputs.ravel()
        return self._label_binarizer.inverse_transform(outputs)

    def predict_proba(self, X):
        """Predict the probability of each class.

        Parameters
        ----------
        X : as in `predict`

        Returns
        -------
        ndarray or dask Array of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        if is_distributed(X):
            return predict_blocks(self, X, "predict_proba")
        check_is_fitted(self)
        outputs = network_outputs(self, X)
        if self.n_outputs_ == 1:
            return np.hstack([1 - outputs, outputs])
        return outputs

    def predict_log_proba(self, X):
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : as in `predict`

        Returns
        -------
        ndarray or dask Array of shape (n_samples, n_classes)
        """
        if is_distributed(X):
            return predict_blocks(self, X, "predict_log_proba")
        probability = self.predict_proba(X)
        return np.log(probability, out=probability)

    def score(self, X, y, sample_weight=None):
        """Weighted fraction of rows whose label, or whose every label, is right.

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
            targets = TrueLabels(self._label_binarizer)
            return score_collections(
                self, X, y, sample_weight, targets, accuracy_score, accuracy
            )
        if sample_weight is None and self._are_plain(y):
            predicted = self.predict(X)
            if self._are_plain(predicted) and len(predicted) == len(y):
                return float(np.mean(predicted == y))
        return super().score(X, y, sample_weight)

    def _are_plain(self, y: Any) -> bool:
        """Whether labels are like those of the fit, and need no looking at.

        scikit-learn's takes 0.3 ms, as long as the prediction of some 600 small rows.
        """
        known = getattr(self, "classes_", None)
        return (
            known is not None
            and known.dtype.kind in "biu"
            and type(y) is np.ndarray
            and y.ndim == 1
            and y.dtype == known.dtype
        )

    def _score_sums(self, predicted: np.ndarray, truth: Any, weights: np.ndarray) -> ScoreSums:
        return label_sums(truth, predicted, weights)

    def _score_of(self, sums: ScoreSums) -> float:
        # A single class is always predicted, whatever the network's output.
        return accuracy(sums) if len(self.classes_) > 1 else 1.0

    def _targets(self, going_on: bool) -> LabelTargets:
        return LabelTargets(self._known_binarizer(going_on), exact=bool(self.warm_start))

    def _known_binarizer(self, going_on: bool) -> LabelBinarizer | None:
        """The classes to keep to; None where this fit learns them."""
        if hasattr(self, "classes_") and (self.warm_start or going_on):
            return self._label_binarizer
        return None

    def _keep_targets(self, targets: Any) -> None:
        self._label_binarizer = targets.binarizer
        self.classes_ = targets.binarizer.classes_

    def _data_in_memory(self, X: Any, y: Any, anew: bool, going_on: bool) -> tuple[Any, ...]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=(np.float64, np.float32),
            reset=anew,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        known = self._known_binarizer(going_on)
        if known is None:
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            labels = y if type_of_target(y).startswith("multilabel") else unique_labels(y)
            check_known(labels, known, exact=bool(self.warm_start))
        return X, y, n_outputs_of(self._label_binarizer), LabelEncoder(self._label_binarizer)

    def _output(self) -> tuple[str, str]:
        if self._label_binarizer.y_type_ == "multiclass":
            return "softmax", "log_loss"
        return "logistic", "binary_log_loss"

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def indicator_classes(y: Any) -> np.ndarray | None:
    """A small indicator matrix with the columns of y; None if y is no such matrix."""
    if is_dask_collection(y):
        if getattr(y, "ndim", 1) == 1 or y.shape[1] == 1:
            return None
        return np.stack([np.zeros(y.shape[1], int), np.ones(y.shape[1], int)])
    return y if type_of_target(y).startswith("multilabel") else None
