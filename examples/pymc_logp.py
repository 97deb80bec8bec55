"""A likelihood larger than memory behind PyMC.

    pip install 'skdtheano[pymc]'
    python examples/pymc_logp.py            # about two minutes on two cores

The model is written as ever, on a few rows: what has rows goes in as `pm.Data`. Then
`distributed_logp` puts dask arrays in the place of these rows. Its logp and gradient are
PyMC's own graph, cut by rows: each block adds up what its rows say, and only these sums, one
number per parameter, travel. `distributed_model` makes a model of it that `pm.sample` takes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import pymc as pm
import pytensor
from distributed import Client, LocalCluster
from pymc.blocking import DictToArrayBijection
from pymc.model.fgraph import ModelObservedRV, fgraph_from_model, model_from_fgraph
from pytensor.gradient import DisconnectedType
from pytensor.graph import Apply, Op
from scipy.optimize import minimize

import skdtheano

Point = dict[str, np.ndarray]


# --- PyMC's graphs as functions of dask arrays -----------------------------------------------


class DistributedGraph:
    """A number that depends on rows, with its gradient.

    Parameters
    ----------
    total : TensorVariable
        Of no dimensions.
    parameters : sequence of TensorVariable
        What it is differentiated by.
    model : pymc.Model
    data : mapping from str to dask Array
        By name of a `pm.Data` of the model, the rows that take its place.
    """

    def __init__(
        self,
        total: Any,
        parameters: Sequence[Any],
        model: pm.Model,
        data: Mapping[str, da.Array],
    ) -> None:
        self.parameters = list(parameters)
        # Random variables are graphs of their own, and are given as values here.
        values = {parameter: parameter.type(parameter.name) for parameter in parameters}
        symbols = {model[name]: _symbol_of(model, name) for name in data}
        # pm.Data has made 32-bit integers of its few rows, too.
        self.data = [data[symbol.name].astype(symbol.dtype) for symbol in symbols.values()]
        self.function = skdtheano.function(
            [*values.values(), *symbols.values()],
            [total, *pytensor.grad(total, self.parameters, disconnected_inputs="ignore")],
            givens=values | symbols,
            on_unused_input="ignore",
            target="dask",
            name="logp",
        )

    def __call__(self, *values: np.ndarray) -> list[np.ndarray]:
        """The number, then its derivative by each parameter."""
        found: Sequence[np.ndarray] = dask.compute(*self.function(*values, *self.data))
        return list(found)


def _symbol_of(model: pm.Model, name: str) -> Any:
    data = {variable.name: variable for variable in model.data_vars}
    if name not in data:
        raise ValueError(
            f"{name!r} is no data of the model, which are {sorted(data)}. Write "
            f"pm.Data({name!r}, ...) where the model has an array of rows, also for what is "
            "observed: a constant's length would be a part of the graph."
        )
    return data[name].type.clone(shape=(None,) * data[name].ndim)(name)


def distributed_logp(model: pm.Model, data: Mapping[str, da.Array]) -> DistributedGraph:
    """`model.logp()` and its gradient, as a function of the values of `model.value_vars`."""
    return DistributedGraph(model.logp(), model.value_vars, model, data)


class Likelihood(Op):
    """A `DistributedGraph` as one node of PyTensor, which has a gradient.

    The outputs are the number and its derivatives: who asks for the gradient has it already.
    """

    def __init__(self, graph: DistributedGraph) -> None:
        self.graph = graph

    def make_node(self, *values: Any) -> Apply:
        total = self.graph.function.outputs[0].type
        kinds = [total, *(parameter.type for parameter in self.graph.parameters)]
        return Apply(self, list(values), [kind() for kind in kinds])

    def perform(self, node: Apply, inputs: Sequence[Any], outputs: list[Any]) -> None:
        for storage, value in zip(outputs, self.graph(*inputs), strict=True):
            # What comes over the network may begin at any byte; C code needs it aligned.
            storage[0] = np.require(value, requirements="A")

    def L_op(self, inputs: Any, outputs: Any, output_grads: Any) -> list[Any]:
        slope, *seconds = output_grads
        if not all(isinstance(second.type, DisconnectedType) for second in seconds):
            raise NotImplementedError("The likelihood has first derivatives only.")
        return [slope * derivative for derivative in outputs[1:]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True] * len(node.outputs) for _ in node.inputs]


def distributed_model(model: pm.Model, data: Mapping[str, da.Array]) -> pm.Model:
    """The model, with its likelihood on dask arrays: for `pm.sample`, `pm.find_MAP`, ...

    The priors stay in this process, with their names, transforms and deterministics.
    """
    observed = model.observed_RVs
    likelihood = sum(pm.logp(rv, model.rvs_to_values[rv]).sum() for rv in observed)
    graph = DistributedGraph(likelihood, model.free_RVs, model, data)
    outline, _ = fgraph_from_model(model)
    for place, output in reversed(list(enumerate(outline.outputs))):
        if isinstance(output.owner.op, ModelObservedRV):
            outline.remove_output(place)
    priors: pm.Model = model_from_fgraph(outline, mutate_fgraph=True)
    with priors:
        total, *_ = Likelihood(graph)(*[priors[rv.name] for rv in model.free_RVs])
        pm.Potential("likelihood", total)
    return priors


def find_map(logp: DistributedGraph, start: Point) -> tuple[Point, float]:
    """The values of highest posterior density, by SciPy's L-BFGS; and their logp."""
    flat = DictToArrayBijection.map(start)

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = DictToArrayBijection.rmap(pm.blocking.RaveledVars(x, flat.point_map_info))
        total, *slopes = logp(*[point[v.name] for v in logp.parameters])
        by_name = {v.name: s for v, s in zip(logp.parameters, slopes, strict=True)}
        return -float(total), -np.concatenate([by_name[n].ravel() for n in start])

    found = minimize(cost, flat.data, jac=True, method="L-BFGS-B", tol=1e-8)
    best = pm.blocking.RaveledVars(found.x, flat.point_map_info)
    return DictToArrayBijection.rmap(best), -float(found.fun)


# --- two models ------------------------------------------------------------------------------


def poisson_regression(rows: Mapping[str, np.ndarray]) -> pm.Model:
    """Counts that depend on four columns."""
    with pm.Model() as model:
        X, y = pm.Data("X", rows["X"]), pm.Data("y", rows["y"])
        intercept = pm.Normal("intercept", 0, 2)
        slopes = pm.Normal("slopes", 0, 1, shape=4)
        pm.Poisson("counts", pm.math.exp(intercept + X @ slopes), observed=y)
    return model


def hierarchical_regression(rows: Mapping[str, np.ndarray]) -> pm.Model:
    """Eight groups, each with a level of its own; the levels have a mean and a spread."""
    with pm.Model(coords={"group": range(8)}) as model:
        X, y, group = (pm.Data(name, rows[name]) for name in ("X", "y", "group"))
        mean, spread = pm.Normal("mean", 0, 2), pm.HalfNormal("spread", 1)
        offset = pm.Normal("offset", 0, 1, dims="group")
        level = pm.Deterministic("level", mean + spread * offset, dims="group")
        slopes = pm.Normal("slopes", 0, 1, shape=4)
        noise = pm.HalfNormal("noise", 1)
        pm.Normal("outcome", level[group] + X @ slopes, noise, observed=y)
    return model


Builder = Callable[[Mapping[str, np.ndarray]], pm.Model]


def models(n_rows: int) -> dict[str, tuple[Builder, Point]]:
    """By name, a model to be and its rows."""
    random = np.random.default_rng(0)
    X = random.normal(size=(n_rows, 4))
    effect = X @ [0.4, -0.3, 0.2, 0.0]
    group = random.integers(0, 8, size=n_rows)
    level = random.normal(1.0, 0.7, size=8)[group]
    outcome = effect + level + 0.5 * random.normal(size=n_rows)
    counts = random.poisson(np.exp(0.5 + effect))
    return {
        "Poisson regression": (poisson_regression, {"X": X, "y": counts}),
        "hierarchical regression": (
            hierarchical_regression,
            {"X": X, "y": outcome, "group": group},
        ),
    }


def in_blocks(rows: Mapping[str, np.ndarray], n_blocks: int = 8) -> dict[str, da.Array]:
    """The rows as dask arrays; those of your own come from Parquet, Zarr, ..."""
    return {
        name: da.from_array(array, chunks=(-(-len(array) // n_blocks), *array.shape[1:]))
        for name, array in rows.items()
    }


def any_point(model: pm.Model, seed: int = 1) -> Point:
    """Values somewhere near the initial ones."""
    random = np.random.default_rng(seed)
    start = model.initial_point()
    return {
        name: value + 0.3 * random.normal(size=value.shape) for name, value in start.items()
    }


def difference_from_pymc(logp: DistributedGraph, whole: pm.Model, point: Point) -> float:
    """The largest relative difference of logp and gradient from those of PyMC itself."""
    total, *slopes = logp(*[point[v.name] for v in logp.parameters])
    found = np.concatenate([np.ravel(total), *map(np.ravel, slopes)])
    theirs = np.ravel(whole.compile_logp()(point)), whole.compile_dlogp()(point)
    expected = np.concatenate(theirs)
    return float(np.max(np.abs(found - expected) / np.abs(expected)))


# --- all of it -------------------------------------------------------------------------------


def compare(name: str, n_rows: int) -> None:
    """Print how logp, its gradient and the MAP differ from PyMC's."""
    build, rows = models(n_rows)[name]
    model = build({key: array[:10] for key, array in rows.items()})  # a few rows suffice
    [data] = dask.persist(in_blocks(rows))  # read once: a fit goes over them many times
    logp, whole = distributed_logp(model, data), build(rows)
    print(f"{name}, {n_rows:,} rows")
    difference = difference_from_pymc(logp, whole, any_point(whole))
    print(f"  logp and gradient differ from PyMC's by {difference:.1e}")
    start = time.perf_counter()
    best, height = find_map(logp, model.initial_point())
    seconds = time.perf_counter() - start
    theirs = whole.compile_logp()(best)
    print(f"  MAP in {seconds:.1f} s: logp {height:.4f} (PyMC's there: {theirs:.4f})")
    print(f"  slopes {np.round(best['slopes'], 3)}")


def sample(model: pm.Model, draws: int = 100, seed: int = 0) -> Any:
    """A short run of NUTS in this process, whose logp is computed on the workers."""
    return pm.sample(
        draws, tune=draws, chains=1, cores=1, random_seed=seed, quiet=True,
        compute_convergence_checks=False, model=model,
    )  # fmt: skip


def main() -> None:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        print(f"Dashboard: {client.dashboard_link}", flush=True)
        for name in models(10):
            compare(name, n_rows=20_000)
        build, rows = models(200)["Poisson regression"]
        few = build({key: array[:10] for key, array in rows.items()})
        [data] = dask.persist(in_blocks(rows, n_blocks=2))
        pairs = ("here", build(rows)), ("distributed", distributed_model(few, data))
        for where, model in pairs:
            start = time.perf_counter()
            slopes = sample(model).posterior["slopes"].values[0]
            seconds = time.perf_counter() - start
            print(
                f"NUTS {where}: {seconds:.1f} s, slopes {np.round(slopes.mean(axis=0), 3)} "
                f"+- {np.round(slopes.std(axis=0), 3)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
