"""scikit-learn's own tests of its multi-layer perceptrons, run on this package's."""
