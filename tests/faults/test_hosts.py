"""A host that is cut off in mid-fit, with no word of it: network namespaces are the hosts."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import pytest
from cases import Case, data
from distributed import Client
from numpy.testing import assert_allclose
from traps import TOPIC, Place, set_trap

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

ROOT = Path(__file__).parent.parent.parent
SCHEDULER = "tcp://10.0.0.1:8786"
#: Seconds of silence after which a worker counts as lost, in these tests.
DEADLINE = 4.0

PLACES = {
    "mid-epoch": Place("run_epoch", 3, 4),
    "validation": Place("score_sums", 3),
    "lbfgs": Place("loss_sums", 4),
}


class Network:
    """Hosts on one switch, and the processes that run on them.

    Each host is a network namespace whose ``eth0`` is the one end of a cable; the other end
    is in a namespace with a bridge. Nothing of it is seen outside.

    Parameters
    ----------
    n_hosts : int
        Of addresses 10.0.0.1, 10.0.0.2, ...
    logs : Path
        Folder for what the processes print.
    """

    def __init__(self, n_hosts: int, logs: Path) -> None:
        self.logs = logs
        self._undo = ExitStack()
        self._prefix = f"skdtheano-{os.getpid()}"
        try:
            self._wire(n_hosts)
        except BaseException:
            self.close()
            raise

    def _wire(self, n_hosts: int) -> None:
        switch = self._namespace("switch")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        self._hosts = [self._namespace(str(i)) for i in range(1, n_hosts + 1)]
        for i, host in enumerate(self._hosts, 1):
            plug = ["type", "veth", "peer", "name", f"port{i}", "netns", switch]
            _ip("-n", host, "link", "add", "eth0", *plug)
            _ip("-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            _ip("-n", host, "address", "add", f"10.0.0.{i}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "link", "set", "lo", "up")

    def _namespace(self, name: str) -> str:
        full = f"{self._prefix}-{name}"
        _ip("netns", "add", full)
        self._undo.callback(_ip, "netns", "delete", full)
        return full

    def start(self, host: int, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """Run Python on a host; it ends, with all that it started, when the network does."""
        count = len(list(self.logs.glob("*.log")))
        with (self.logs / f"{count}-on-host-{host}.log").open("w") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._hosts[host - 1], sys.executable, *arguments],
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(
                        map(str, [ROOT, ROOT / "tests", ROOT / "tests" / "faults"])
                    )
                },
                stderr=log,
                start_new_session=True,
                text=True,
                **more,
            )
        self._undo.callback(_kill_group, process)
        return process

    def is_up(self, host: int) -> bool:
        [link] = json.loads(_ip("-n", self._hosts[host - 1], "-json", "link", "show", "eth0"))
        return "UP" in link["flags"]

    def close(self) -> None:
        self._undo.close()


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _kill_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # it has ended, and left nothing behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Three hosts."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("Network namespaces are Linux's, and the command `ip` makes them.")
    try:
        made = Network(3, tmp_path)
    except OSError as error:
        pytest.skip(f"No network namespaces can be made here, which takes root: {error}")
    yield made
    made.close()


def case_of(place: str) -> tuple[Case, dict[str, Any]]:
    optimizer = "lbfgs" if place == "lbfgs" else "adam"
    case = Case(
        optimizer, "tanh", "binary", weighted=False, early_stopping=place == "validation"
    )
    return case, {"max_iter": 8} if place == "lbfgs" else {"max_iter": 5, "batch_size": 16}


def fit_and_tell(place: str) -> None:
    """Fit, as a process on the scheduler's host; print what the test is to know."""
    case, parameters = case_of(place)
    X, y = data("binary")
    table, targets = da.from_array(X, chunks=(15, X.shape[1])), da.from_array(y, chunks=15)
    with Client(SCHEDULER) as client:
        client.wait_for_workers(2, timeout=60)
        before = sorted(client.nthreads())
        client.run(set_trap, PLACES[place], "unplugged", workers=before[-1:])
        limits = {"skdtheano.worker-deadline": DEADLINE, "skdtheano.no-worker-timeout": 4}
        with dask.config.set(limits):
            ours = case.ours(**parameters).fit(table, targets)
        told = {
            "unplugged": [event["address"] for _, event in client.get_events(TOPIC)],
            "before": before,
            "after": sorted(client.nthreads()),
            "loss": ours.loss_,
            "loss_curve": getattr(ours, "loss_curve_", None),
            "coefs": ours.coefs_[0].tolist(),
        }
    print(json.dumps(told))


@pytest.mark.parametrize(
    ("place", "nanny"),
    [
        pytest.param("mid-epoch", "--nanny", marks=pytest.mark.exhaustive),
        pytest.param("mid-epoch", "--no-nanny", marks=pytest.mark.exhaustive),
        pytest.param("validation", "--nanny", marks=pytest.mark.exhaustive),
        pytest.param("lbfgs", "--no-nanny", marks=pytest.mark.exhaustive),
    ],
)
def test_a_host_that_is_cut_off_changes_nothing(
    network: Network, place: str, nanny: str
) -> None:
    """No FIN and no RST: the others hear nothing more of it, and its nanny neither."""
    dashboard = "--no-dashboard"
    where = SCHEDULER.removeprefix("tcp://").split(":")
    network.start(1, "-m", "dask", "scheduler", "--host", where[0], "--port", where[1],
                  dashboard)  # fmt: skip
    for host in (2, 3):
        network.start(host, "-m", "dask", "worker", SCHEDULER, "--host", f"10.0.0.{host}",
                      "--nthreads", "1", nanny, dashboard,
                      "--local-directory", str(network.logs / f"host-{host}"))  # fmt: skip
    call = f"import test_hosts; test_hosts.fit_and_tell({place!r})"
    caller = network.start(1, "-c", call, stdout=subprocess.PIPE)
    printed, _ = caller.communicate(timeout=200)
    logs = {log.name: log.read_text() for log in network.logs.glob("*.log")}
    assert caller.returncode == 0, logs
    told = json.loads(printed)
    assert told["unplugged"] == told["before"][-1:], "nothing went wrong"
    assert told["after"] == told["before"][:1]
    assert [network.is_up(host) for host in (2, 3)] == [True, False]
    case, parameters = case_of(place)
    theirs = case.theirs().set_params(**parameters).fit(*data("binary"))
    if place == "lbfgs":
        assert_allclose(told["loss"], theirs.loss_, rtol=1e-7)
    else:
        assert_allclose(told["loss_curve"], theirs.loss_curve_, rtol=1e-9)
    assert_allclose(told["coefs"], theirs.coefs_[0], rtol=1e-7, atol=1e-9)
