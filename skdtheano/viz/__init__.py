"""Pictures of what a function runs: interactive in a browser, or static."""

from skdtheano.viz.writing import d3viz, svg

__all__ = ["d3viz", "svg"]
