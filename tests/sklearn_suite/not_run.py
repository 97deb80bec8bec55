"""Tests of scikit-learn's `test_mlp.py` that cannot run on another implementation."""

#: Reason by name of the test. It puts the private member of scikit-learn's class that the
#: test needs in backquotes: `test_sklearn_suite` checks that the test still needs it.
NOT_RUN: dict[str, str] = {
    "test_gradient": (
        "calls the private `_loss_grad_lbfgs` with the arrays that scikit-learn's "
        "backpropagation writes to; the gradient is a graph's here and needs no such arrays"
    ),
}
