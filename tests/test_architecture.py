"""Imports point down only: the table of rooms, held against the imports in the source."""

import ast
from pathlib import Path

import pytest

import skdtheano

PACKAGE = Path(skdtheano.__file__).parent

#: What each room may import of the package, besides itself; the first match counts.
MAY_IMPORT = {
    "skdtheano.version": (),
    "skdtheano.notices": (),
    "skdtheano.engine": (),
    "skdtheano.symbolic": ("skdtheano.engine",),
    "skdtheano.scans": ("skdtheano.engine", "skdtheano.symbolic"),
    "skdtheano.draws": ("skdtheano.engine",),
    # Graphs as NumPy calls, or as loops: no model is known here, and no data.
    "skdtheano.recipe": ("skdtheano.engine",),
    "skdtheano.shelf": ("skdtheano.engine",),
    "skdtheano.cookbook": (
        "skdtheano.engine",
        "skdtheano.recipe",
        "skdtheano.shelf",
        "skdtheano.version",
    ),
    "skdtheano.numbering": ("skdtheano.recipe",),
    "skdtheano.numpy_steps": (
        "skdtheano.numbering",
        "skdtheano.recipe",
        "skdtheano.side_by_side",
    ),
    "skdtheano.loops": ("skdtheano.numbering", "skdtheano.shelf"),
    "skdtheano.loop_writer": ("skdtheano.loops", "skdtheano.numbering"),
    "skdtheano.fusing": (
        "skdtheano.loop_writer",
        "skdtheano.loops",
        "skdtheano.numbering",
        "skdtheano.side_by_side",
    ),
    "skdtheano.binding": (
        "skdtheano.fusing",
        "skdtheano.loop_writer",
        "skdtheano.memory",
        "skdtheano.numbering",
        "skdtheano.side_by_side",
    ),
    "skdtheano.routine": (
        "skdtheano.binding",
        "skdtheano.loops",
        "skdtheano.memory",
        "skdtheano.numbering",
        "skdtheano.numpy_steps",
        "skdtheano.recipe",
    ),
    "skdtheano.graphs": (
        "skdtheano.draws",
        "skdtheano.engine",
        "skdtheano.scans",
        "skdtheano.symbolic",
    ),
    # Symbols end where data begins: of the runtime, only `program` compiles graphs.
    "skdtheano.runtime.program": (
        "skdtheano.cookbook",
        "skdtheano.engine",
        "skdtheano.graphs",
        "skdtheano.recipe",
        "skdtheano.routine",
        "skdtheano.runtime.blocks",
        "skdtheano.runtime.update",
    ),
    "skdtheano.runtime.update": ("skdtheano.loops", "skdtheano.recipe", "skdtheano.routine"),
    "skdtheano.runtime.pieces": ("skdtheano.engine", "skdtheano.symbolic"),
    # An optimizer's numbers travel with the steps; its graph stays in `program`.
    "skdtheano.runtime.steps": ("skdtheano.graphs.optimizers", "skdtheano.runtime"),
    "skdtheano.runtime.stack": ("skdtheano.runtime", "skdtheano.side_by_side"),
    "skdtheano.runtime.stacked_program": ("skdtheano.memory", "skdtheano.runtime"),
    "skdtheano.runtime.stacked_vectors": (
        "skdtheano.memory",
        "skdtheano.runtime",
        "skdtheano.side_by_side",
    ),
    "skdtheano.runtime": ("skdtheano.runtime",),
    "skdtheano.course": ("skdtheano.graphs.optimizers", "skdtheano.runtime.steps"),
    "skdtheano.training": (
        "skdtheano.course",
        "skdtheano.notices",
        "skdtheano.runtime",
    ),
    "skdtheano.estimators": (
        "skdtheano.course",
        "skdtheano.engine",
        "skdtheano.estimators",
        "skdtheano.graphs",
        "skdtheano.notices",
        "skdtheano.runtime",
        "skdtheano.training",
        "skdtheano.version",
    ),
    "skdtheano.model_selection.halving": (),
    "skdtheano.model_selection": (
        "skdtheano.estimators",
        "skdtheano.model_selection",
        "skdtheano.notices",
        "skdtheano.runtime",
    ),
    "skdtheano.functions": (
        "skdtheano.draws",
        "skdtheano.engine",
        "skdtheano.functions",
        "skdtheano.graphs",
        "skdtheano.notices",
        "skdtheano.runtime",
        "skdtheano.scans",
        "skdtheano.symbolic",
    ),
    "skdtheano.viz": (
        "skdtheano.engine",
        "skdtheano.functions",
        "skdtheano.graphs",
        "skdtheano.symbolic",
    ),
    "skdtheano": (
        "skdtheano.estimators",
        "skdtheano.functions",
        "skdtheano.graphs.placement",
        "skdtheano.version",
        "skdtheano.viz",
    ),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(file: Path) -> set[str]:
    """Modules that a file imports anywhere, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add(node.module or "")
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if _is_module(name)}
    return found


def _is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_room_imports_only_rooms_below_it(file: Path) -> None:
    module = module_name(file)
    room = next(room for room in MAY_IMPORT if within(module, room))
    allowed = MAY_IMPORT[room]
    inside = {name for name in imported_modules(file) if within(name, "skdtheano")}
    # `from skdtheano import engine` names the package too, and what it means is counted.
    inside -= {
        name for name in inside if any(other.startswith(name + ".") for other in inside)
    }
    wrong = {name for name in inside if not any(within(name, a) for a in (*allowed, room))}
    wrong |= inside & {"skdtheano"}
    assert not wrong, f"{module} imports {sorted(wrong)}"


def test_one_module_names_an_engine() -> None:
    engines = ("pytensor", "theano")
    naming = {
        module_name(file)
        for file in FILES
        for name in imported_modules(file)
        if name.split(".")[0] in engines
    }
    assert naming == {"skdtheano.engine"}


def test_clients_and_graphs_never_meet() -> None:
    """Graph code sees no client; cluster code sees no symbol."""
    for file in FILES:
        imports = imported_modules(file)
        module = module_name(file)
        if within(module, "skdtheano.graphs"):
            assert not any(name.split(".")[0] in ("dask", "distributed") for name in imports)
        if within(module, "skdtheano.runtime") and any(
            name.split(".")[0] == "distributed" for name in imports
        ):
            assert "skdtheano.engine" not in imports


def test_no_room_is_called_after_nothing() -> None:
    names = {file.stem for file in FILES}
    assert not names & {"utils", "helpers", "base", "common", "misc", "core"}


def test_no_file_has_grown_into_two_nouns() -> None:
    lengths = {module_name(file): len(file.read_text().splitlines()) for file in FILES}
    assert {name: n for name, n in lengths.items() if n > 480} == {}
