"""How a function is made: its target, names and what it may do."""

from dataclasses import dataclass

from skdtheano import engine

TARGETS = (None, "cpu", "dask", "gpu")


@dataclass(frozen=True)
class Options:
    """How a function is made; see `function`."""

    on_unused_input: str
    target: str | None
    mode: str
    name: str
    rows: tuple[str, ...] | None
    replicated: tuple[str, ...]
    gather: bool


def accelerator_mode(mode: str | None) -> str:
    """The engine's mode that runs on an accelerator, which it reaches by JAX.

    Raises
    ------
    RuntimeError
        If there is none, or no JAX to reach it.
    """
    if engine.ENGINE != "pytensor":
        raise RuntimeError("target='gpu' needs PyTensor; classic Theano's GPU code is gone.")
    try:
        import jax
    except ImportError as error:
        raise RuntimeError(
            "target='gpu' runs by JAX, which is not installed: pip install 'jax[cuda12]'."
        ) from error
    platforms = {device.platform for device in jax.devices()}
    if platforms == {"cpu"}:
        raise RuntimeError(
            "target='gpu' found no accelerator: JAX knows only the CPU here. Use target=None, "
            "or mode='JAX' to run by JAX on the CPU."
        )
    return engine.check_mode(mode or "JAX")
