"""`d3viz` and `svg`: a function's plan, drawn to a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skdtheano.functions.cut_calls import cut_call
from skdtheano.viz.drawing import svg_of
from skdtheano.viz.layout import layout_of
from skdtheano.viz.page import page_of
from skdtheano.viz.picture import picture_of


def d3viz(
    f: Any,
    path: str | Path,
    *arguments: Any,
    blocks: int | Sequence[int] | None = None,
    **named: Any,
) -> Path:
    """Draw what a function would run, as one HTML file to look at in a browser.

    The file reads nothing from elsewhere, so it works without a network. Nodes are coloured
    by placement, and lie in a band for each piece: once, on each block, combined. Pointing
    at one tells its Op, types and shapes (n is the rows of the block, N those of all), where
    it is placed, and the line of the source that made it. Drag the paper or a node, and turn
    the wheel to zoom. The name is that of ``theano.d3viz.d3viz``.

    Parameters
    ----------
    f : callable
        Made by `skdtheano.function`.
    path : str or Path
        Of the file, which is written anew.
    *arguments : array, dask array or tuple of int
        As for a call, or shapes; see `skdtheano.explain`.
    blocks : int or sequence of int, optional
        As for `skdtheano.explain`.
    **named
        Further arguments by name.

    Returns
    -------
    Path
        Of the file.
    """
    picture = picture_of(cut_call(f, arguments, named, blocks))
    return _written(path, page_of(picture, layout_of(picture)).encode())


def svg(
    f: Any,
    path: str | Path,
    *arguments: Any,
    blocks: int | Sequence[int] | None = None,
    **named: Any,
) -> Path:
    """Draw what a function would run, as a static picture.

    Parameters
    ----------
    path : str or Path
        Of the file, which is written anew; its suffix is ``.svg``, or ``.png``, which
        CairoSVG draws where it is installed (the extra ``png``).
    f, *arguments, blocks, **named
        As for `d3viz`.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ImportError
        For ``.png``, if CairoSVG is not installed.
    ValueError
        For another suffix.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".svg", ".png"):
        raise ValueError(
            f"{path} ends neither in .svg nor in .png. For a page, use skdtheano.viz.d3viz."
        )
    to_png = _png_drawer(path) if kind == ".png" else None
    picture = picture_of(cut_call(f, arguments, named, blocks))
    drawn = svg_of(picture, layout_of(picture)).encode()
    return _written(path, drawn if to_png is None else to_png(bytestring=drawn))


def _png_drawer(path: str | Path) -> Any:
    try:
        from cairosvg import svg2png
    except (ImportError, OSError) as error:  # the latter without the cairo library
        raise ImportError(
            f"{path} is a PNG, which CairoSVG draws, and it cannot be imported ({error}): "
            "pip install 'skdtheano[png]', with the cairo library of the system. Or write a "
            ".svg, which needs neither."
        ) from error
    return svg2png


def _written(path: str | Path, content: bytes) -> Path:
    file = Path(path)
    file.write_bytes(content)
    return file
