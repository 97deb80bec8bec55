"""Who can talk to a fit, through which doors, and what is unpickled on the way."""

import ast
import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import psutil
import pytest
from cases import Case, data, expected
from distributed import Client, LocalCluster, Security, Worker
from distributed.comm import connect
from numpy.testing import assert_allclose

import skdtheano
from skdtheano.runtime import tasks
from skdtheano.runtime.rounds import ClusterRuntime

ROOT = Path(__file__).parent.parent
PACKAGE = Path(skdtheano.__file__).parent

CASE = Case("adam", "tanh", "multiclass", weighted=False, early_stopping=True)

of_cluster = [
    pytest.mark.table,  # the engine has no part in it
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Security]:
    """Security with a self-signed certificate, which trusts no other one.

    By the command and not by `Security.temporary`, whose `cryptography` nothing else of the
    project needs.
    """
    if shutil.which("openssl") is None:
        pytest.skip("There is no openssl to make certificates with.")
    folder = tmp_path_factory.mktemp("certificates")

    def made(name: str) -> Security:
        key, cert = str(folder / f"{name}.key"), str(folder / f"{name}.pem")
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        subject = ["-subj", f"/CN={name}", "-keyout", key, "-out", cert]
        subprocess.run([*command, *subject], check=True, capture_output=True)
        roles = ("client", "scheduler", "worker")
        files = {f"tls_{role}_{kind}": path for role in roles for kind, path in
                 (("cert", cert), ("key", key))}  # fmt: skip
        return Security(tls_ca_file=cert, require_encryption=True, **files)

    return made


@pytest.fixture(scope="module")
def security(certificate: Callable[[str], Security]) -> Security:
    return certificate("cluster")


@pytest.fixture(scope="module")
def tls_cluster(security: Security) -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        protocol="tls://",
        security=security,
    ) as cluster:
        yield cluster


@pytest.fixture
def tls_client(tls_cluster: LocalCluster) -> Iterator[Client]:
    with Client(tls_cluster) as client:
        yield client


def fitted() -> Any:
    X, y = data(CASE.task)
    return CASE.ours().fit(da.from_array(X, chunks=(20, X.shape[1])), da.from_array(y, 20))


Doors = frozenset[tuple[str, int]]


def doors(pid: int) -> Doors:
    """Addresses that a process, or one that it has started, can be reached at."""
    process = psutil.Process(pid)
    return frozenset(
        (door.laddr.ip, door.laddr.port)
        for one in (process, *process.children(recursive=True))
        for door in one.net_connections("inet")
        if door.laddr and not door.raddr and door.status in ("LISTEN", "NONE")
    )


@dataclass(frozen=True)
class Seen:
    """What a worker saw of itself at the end of its part of an epoch."""

    comms: list[tuple[str, str, str]]
    doors: Doors


def _watch(dask_worker: Worker) -> None:
    """Note, at the end of each epoch and before the comms are given back, what there is."""
    original = tasks.run_epoch
    dask_worker.seen = []  # type: ignore[attr-defined]

    def run_epoch(*arguments: Any) -> float:
        loss = original(*arguments)
        comms = [
            (type(comm).__name__, comm.peer_address, type(comm.stream.socket).__name__)
            for comm in arguments[-1]._comms.values()
        ]
        dask_worker.seen.append(Seen(comms, doors(os.getpid())))  # type: ignore[attr-defined]
        return loss

    tasks.run_epoch, dask_worker.unwatched = run_epoch, original  # type: ignore[attr-defined]


def _unwatch(dask_worker: Any) -> list[Seen]:
    tasks.run_epoch = dask_worker.unwatched
    seen: list[Seen] = dask_worker.seen
    return seen


class TestOverTLS:
    pytestmark = of_cluster

    def test_a_fit_is_scikit_learns_and_opens_no_port(
        self, tls_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here: list[Doors] = [doors(os.getpid())]
        run_epochs = ClusterRuntime.run_epochs

        def watched(self: ClusterRuntime, *arguments: Any) -> list[float]:
            losses = run_epochs(self, *arguments)
            here.append(doors(os.getpid()))
            return losses

        monkeypatch.setattr(ClusterRuntime, "run_epochs", watched)
        before = tls_client.run(lambda: doors(os.getpid()))
        tls_client.run(_watch)
        try:
            ours = fitted()
        finally:
            seen = tls_client.run(_unwatch)
        after = tls_client.run(lambda: doors(os.getpid()))
        here.append(doors(os.getpid()))

        theirs = expected(CASE)
        assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
        assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-7, atol=1e-12)
        assert before == after and all(before.values())
        assert len(here) == ours.n_iter_ + 2 and set(here) == {here[0]}
        assert len(before) == 2
        for worker, epochs in seen.items():
            assert worker.startswith("tls://")
            assert len(epochs) == ours.n_iter_
            [peer] = set(before) - {worker}
            for epoch in epochs:
                assert epoch.comms == [("TLS", peer, "SSLSocket")]
                assert epoch.doors == before[worker]

    def test_nothing_is_heard_on_other_interfaces(self, tls_client: Client) -> None:
        """What listens of a cluster that is started as in the README and the examples."""
        pids = {os.getpid(), *tls_client.run(os.getpid).values()}
        addresses = {ip for pid in pids for ip, _ in doors(pid)}
        assert addresses == {"127.0.0.1"}

    @pytest.mark.parametrize("whom", ["scheduler", "worker"])
    def test_who_does_not_speak_tls_is_refused(self, tls_client: Client, whom: str) -> None:
        address = _address_of(tls_client, whom).replace("tls://", "tcp://")
        with pytest.raises(OSError, match=r"[Tt]imed out|closed"):
            _connect(address, Security())

    @pytest.mark.parametrize("whom", ["scheduler", "worker"])
    def test_who_has_another_certificate_is_refused(
        self, tls_client: Client, certificate: Callable[[str], Security], whom: str
    ) -> None:
        with pytest.raises(OSError, match=r"(?i)certificate|timed out"):
            _connect(_address_of(tls_client, whom), certificate("stranger"))

    @pytest.mark.parametrize("whom", ["scheduler", "worker"])
    def test_who_has_the_certificate_is_not(
        self, tls_client: Client, security: Security, whom: str
    ) -> None:
        assert _connect(_address_of(tls_client, whom), security) == "heard"


def _address_of(client: Client, whom: str) -> str:
    if whom == "worker":
        return min(client.nthreads())
    address: str = client.scheduler.address  # type: ignore[union-attr]
    return address


def _connect(address: str, security: Security) -> Any:
    """What comes back from one of dask's servers; OSError if it does not want to talk."""

    async def said() -> Any:
        comm = await connect(address, timeout=2, **security.get_connection_args("client"))
        try:
            await comm.write({"op": "echo", "data": "heard", "reply": True})
            return await comm.read()
        finally:
            comm.abort()

    return asyncio.run(said())


#: What makes code or objects of bytes or text, where the package may do it, and why there.
MAY_RUN = {
    ("runtime/pieces.py", "Source.graph", "pickle.loads"): (
        "a graph of the caller's process, in a task of dask's or in a pickle of the user's"
    ),
    ("functions/graph_function.py", "GraphFunction.__setstate__", "pickle.loads"): (
        "called by the unpickling of the object that holds the bytes"
    ),
    ("functions/traced_function.py", "_restored", "pickle.loads"): (
        "called by the unpickling of the object that holds the bytes"
    ),
    ("draws.py", "_Unpacked.perform", "pickle.loads"): (
        "a generator of a shared variable, packed by this package; no argument is one"
    ),
    ("draws.py", "unpack_generator", "pickle.loads"): (
        "a generator of a shared variable, packed by this package; no argument is one"
    ),
}

LOADING_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADING_NAMES = {"load", "loads", "open", "Unpickler", "Shelf"}


def loads(node: ast.AST, meant: dict[str, str]) -> str | None:
    """The name of what runs code of its argument, if a node does."""
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    first, *rest = name.split(".")
    name = ".".join([meant.get(first, first), *rest])
    module, _, last = name.rpartition(".")
    if name in ("eval", "exec", "__import__", "builtins.eval", "builtins.exec"):
        return name
    if module.split(".")[0] in LOADING_MODULES and last in LOADING_NAMES:
        return name
    if last in ("read_pickle", "Unpickler"):
        return name
    pickles = [word.value for word in node.keywords if word.arg == "allow_pickle"]
    if any(not (isinstance(v, ast.Constant) and v.value is False) for v in pickles):
        return f"{name}(allow_pickle=...)"
    return None


def names_imported(tree: ast.AST) -> dict[str, str]:
    """What the names that a file imports stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname is not None}
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def loading_places(source: str) -> set[tuple[str, str]]:
    """The functions of a source that make objects or code, each with what it calls."""
    tree = ast.parse(source)
    meant, found = names_imported(tree), set()

    def walk(node: ast.AST, inside: tuple[str, ...]) -> None:
        called = loads(node, meant)
        if called is not None:
            found.add((".".join(inside), called))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inside = (*inside, node.name)
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(tree, ())
    return found


def test_what_is_unpickled_is_what_the_list_says() -> None:
    found = {
        (str(file.relative_to(PACKAGE)), where, called)
        for file in PACKAGE.rglob("*.py")
        for where, called in loading_places(file.read_text())
    }
    assert found == set(MAY_RUN)


def test_the_page_on_security_names_what_is_unpickled_and_what_is_heard() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)}
    assert named == {file for file, _, _ in MAY_RUN}
    heard = {name for row in rows for name in re.findall(r"`(skdtheano_\w+)`", row)}
    mailbox = (PACKAGE / "runtime" / "mailbox.py").read_text()
    assert heard == set(re.findall(r'handlers\["(\w+)"\]', mailbox))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle as p; p.load(file)",
        "from pickle import loads as read; read(data)",
        "import cloudpickle; cloudpickle.loads(data)",
        "import pickle; pickle.Unpickler(file).load()",
        "import numpy as np; np.load(file, allow_pickle=True)",
        "import numpy as np; np.load(file, allow_pickle=wanted)",
        "import joblib; joblib.load(file)",
        "import pandas as pd; pd.read_pickle(file)",
        "eval(text)",
        "exec(text)",
    ],
)
def test_the_scan_sees(line: str) -> None:
    assert loading_places(line)


def test_the_package_has_no_sockets_or_processes_of_its_own_and_one_place_for_memory() -> None:
    doors = {
        "http", "mmap", "multiprocessing", "os.system", "socket", "socketserver",
        "subprocess", "tornado", "urllib",
    }  # fmt: skip
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            named: set[str] = set()
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named = {node.module or ""}
            elif isinstance(node, ast.Attribute):
                assert node.attr not in ("start_server", "create_server", "listen"), file
            found = {name.split(".")[0] for name in named} & doors
            if file.name == "segments.py":  # anonymous, and read by the same user alone
                found -= {"mmap"}
            assert not found, f"{file}: {named}"


def sources() -> dict[str, str]:
    """All code that the project shows or runs: scripts, and blocks of the documents."""
    found = {}
    for folder in ("examples", "benchmarks", "scripts", "skdtheano", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            found[str(file.relative_to(ROOT))] = file.read_text()
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)
        for i, block in enumerate(blocks):
            found[f"{file.relative_to(ROOT)}, block {i}"] = block
    return found


def test_each_cluster_of_ours_shows_its_dashboard_to_this_machine_alone() -> None:
    """dask's default, ":8787", listens on all interfaces, though its link says 127.0.0.1."""
    n_clusters = 0
    for name, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func).split(".")[-1]
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "LocalCluster":
                n_clusters += 1
                assert words.get("dashboard_address") == "'127.0.0.1:0'", name
            elif called == "Client":  # without an address it starts a cluster
                assert node.args or "address" in words, name
    assert n_clusters >= 6
