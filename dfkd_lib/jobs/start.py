"""Starting a cluster of processes on this machine, or connecting to one that runs elsewhere."""

import json
import secrets
import shutil
import socket
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil

from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.jobs.cluster import Cluster, Inline, briefly, failed
from dfkd_lib.jobs.worker import GIGABYTE, NO_GPU, offer_plugin, own_plugin, visible_gpus

CONNECT_SECONDS = 30  # that a scheduler may take to answer
RETRIES = 2  # times that a job may lose its worker on a cluster of ours before it is given up


@contextmanager
def opened(
    jobs: int,
    scheduler: str | None,
    receive: Callable[[str, dict], None],
    note: Callable[[str], None] = print,
    inline: bool = True,
) -> Iterator[Inline | Cluster]:
    """Where jobs run: here, one at a time (jobs 1), on so many processes of this machine, or on the cluster at `scheduler`.

    Args:
        jobs: processes. scheduler: address ("tcp://host:8786", "tls://host:8786") or a scheduler file, as `dask scheduler`
            writes it. receive: called with (job, message) for what jobs tell. inline: whether one job runs in this process.

    Raises:
        WorkbenchError: if no scheduler or worker answers there.
    """
    if scheduler is None and jobs == 1 and inline:
        with closing(Inline(receive)) as here:
            yield here
        return
    place = _local(jobs) if scheduler is None else _connected(scheduler, note)
    with place as (client, dashboard):
        with closing(Cluster(client, receive, None if scheduler else jobs, dashboard)) as cluster:
            cluster.wait_for_workers(note)
            yield cluster


@contextmanager
def _connected(address: str, note: Callable[[str], None]):
    """(client, dashboard) of a cluster that runs; its workers are asked to say what they have."""
    from distributed import Client

    plugin = f"dfkd-offer-{secrets.token_hex(4)}"
    try:
        path = Path(address).expanduser()
        place = {"scheduler_file": str(path)} if path.is_file() else {"address": address}
        _check_listens(json.loads(path.read_text())["address"] if path.is_file() else address)
        client = Client(**place, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise WorkbenchError(
            "no Dask scheduler answers there",
            where=address,
            got=f"{type(error).__name__}: {error}"[:300],
            expected="an address such as tcp://host:8786, or a scheduler file",
            fix="start one (dask scheduler), or use --jobs N on this machine",
        ) from None
    try:
        used = client.scheduler.address
        if used.startswith("tcp://") and "127.0.0.1" not in used:
            note(
                "this scheduler takes work from anyone who can reach it; TLS certificates would guard it (see the guide)"
            )
        try:
            client.register_plugin(offer_plugin(), name=plugin)
        except ImportError as error:
            raise failed(error) from None
        yield client, client.dashboard_link
    finally:
        # It would stand in the way of other people's workers, which need not know this library.
        briefly(lambda: client.unregister_worker_plugin(plugin))
        with suppress(Exception):
            client.close(timeout=5)


def _check_listens(address: str) -> None:
    """Raise OSError or ValueError unless something listens there.

    Asked before a Client is made: one that finds nothing takes long to say so, and is cleared away at any later moment,
    also while the next one starts, when Dask waits for itself.
    """
    place = urllib.parse.urlsplit(address if "://" in address else f"tcp://{address}")
    if place.scheme in ("tcp", "tls"):
        if not (place.hostname and place.port):
            raise ValueError("no such file, and no address")
        socket.create_connection((place.hostname, place.port), timeout=CONNECT_SECONDS).close()


@contextmanager
def _local(jobs: int):
    """(client, dashboard) of a cluster of so many processes on this machine: on loopback, with certificates of its own."""
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster
    from distributed.security import Security

    security, secret = Security.temporary(), secrets.token_urlsafe(24)
    common = {"host": "127.0.0.1", "protocol": "tls://", "security": security}
    folder = tempfile.mkdtemp(prefix="dfkd-workers-")
    # What goes wrong in a job the run reports, not Dask's log; nor that workers end as a run is stopped.
    quiet = {"silence_logs": "CRITICAL"}
    # Worker processes' memory is not what fills up (kernels are processes of their own): no limits of Dask's.
    limits = {"nthreads": 1, "memory_limit": 0, "local_directory": folder, **quiet}
    specs = {
        place: {"cls": Nanny, "options": {**common, **limits, "resources": offer, "env": env}}
        for place, (offer, env) in enumerate(_shares(jobs))
    }
    pages = {"dashboard": True, "dashboard_address": "127.0.0.1:0", "http_prefix": secret}
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0, **pages}}
    # By themselves nannies give all processes, also the one they start from, one thread of MKL's.
    with dask.config.set(
        {
            "distributed.scheduler.allowed-failures": RETRIES,
            "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "critical"},
        }
    ):
        cluster = client = None
        try:
            cluster = SpecCluster(workers=specs, scheduler=scheduler, security=security, **quiet)
            _close_other_pages(cluster.scheduler.http_application, secret)
            client = Client(cluster, set_as_default=False)
            client.register_plugin(own_plugin())
            yield client, f"http://127.0.0.1:{cluster.scheduler.http_server.port}/{secret}/status"
        finally:
            for part, seconds in ((client, 5), (cluster, 10)):
                with suppress(Exception):
                    if part:
                        part.close(timeout=seconds)
            shutil.rmtree(folder, ignore_errors=True)


def _close_other_pages(application, secret: str) -> None:
    """Take away every page outside the secret's path: some of them lead there, or list what there is."""

    def own(rule) -> bool:
        pattern = getattr(getattr(rule.matcher, "regex", None), "pattern", "")
        return pattern.startswith(f"/{secret}")

    for part in (application, *application.applications):
        for host in part.default_router.rules:
            host.target.rules[:] = filter(own, host.target.rules)


def _shares(jobs: int) -> list[tuple[dict, dict]]:
    """(resources, environment) of each local worker: an equal share of cores and memory, and a GPU each for the first."""
    threads = max(1, processes.cores() // jobs)
    memory = round(psutil.virtual_memory().total / GIGABYTE / jobs, 2)
    cards, found = visible_gpus(), []
    for place in range(jobs):
        own = cards[place : place + 1]
        env = {"OMP_NUM_THREADS": str(threads), "DFKD_PROGRESS": "none"}
        if cards and own != ["mps"]:  # a worker without a card of its own must not see the others'
            env |= {"CUDA_VISIBLE_DEVICES": own[0]} if own else NO_GPU
        offer = {"threads": threads, "memory": memory, **({"GPU": 1} if own else {})}
        found.append((offer, env))
    return found
