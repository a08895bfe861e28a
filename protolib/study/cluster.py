"""Where a grid runs on more than this machine: a Dask cluster whose scheduler gives each run to one
worker, and to another one where that is lost. docs/cluster.md says how one is started."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

RETRIES = 2  # of a run that failed; one whose worker died goes to another anyway
PATIENCE = 20  # seconds for a scheduler to answer


def elsewhere(on: str) -> bool:
    """Whether the runs go to machines that are not this one."""
    return on not in ("", "local")


def check(on: str, device: str, jobs: int) -> None:
    """Refuse what cannot be.

    on: "local", workers of this machine; "slurm", jobs of Slurm as dask-jobqueue is told to ask for
    them; or the address of a scheduler that is there, such as tcp://10.0.0.5:8786. Raises
    ValueError.
    """
    if not find_spec("distributed") or not find_spec("dask_jobqueue"):
        raise ValueError("--cluster needs Dask: pip install 'protolib[cluster]'")
    if on not in ("local", "slurm") and ":" not in on:
        raise ValueError(
            f"--cluster {on}: give local, slurm, or a scheduler's address, such as "
            "tcp://10.0.0.5:8786"
        )
    if elsewhere(on) and device == "auto":
        raise ValueError(
            f"--cluster {on}: say --device cpu or cuda, for its machines are not this one"
        )
    if on == "slurm" and not jobs:
        raise ValueError("--cluster slurm: say --jobs N, how many jobs Slurm shall start")
    if on not in ("local", "slurm") and jobs:
        raise ValueError(f"--jobs {jobs}: the cluster at {on} has its workers, leave it away")


@contextmanager
def executor(on: str, device: str, jobs: int, places: Sequence[str]) -> Iterator[Any]:
    """An executor whose tasks are done by the workers of a cluster; on a GPU each takes one.

    on, device, jobs: as check wants them. places: local workers, a device each. Raises ValueError
    where the cluster cannot be had.
    """
    from distributed import Client  # here: the other ways do without it

    wanted = {"GPU": 1} if device.startswith("cuda") else {}
    if on == "local":
        with _local(places, wanted) as cluster, Client(cluster) as client:
            print(f"{len(places)} workers", flush=True)
            yield client.get_executor(retries=RETRIES, resources=wanted)
    elif on == "slurm":
        with _slurm(jobs, wanted) as cluster, Client(cluster) as client:
            print(f"{jobs} jobs asked of Slurm", flush=True)
            yield client.get_executor(retries=RETRIES, resources=wanted)
    else:
        try:
            client = Client(on, timeout=PATIENCE)
        except (OSError, ValueError) as error:
            raise ValueError(f"--cluster {on}: no scheduler answers there ({error})") from error
        with client:
            _tell_workers(client, wanted)
            yield client.get_executor(retries=RETRIES, resources=wanted)


def _local(places: Sequence[str], wanted: dict[str, int]) -> Any:
    """Workers of this machine, each a process of one thread, on a GPU each with its own."""
    from distributed import Nanny, Scheduler, SpecCluster

    reached = {"host": "127.0.0.1"}
    workers = {}
    for i, place in enumerate(places):
        gpu = place.partition(":")[2]
        own = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        options = reached | {"nthreads": 1, "resources": wanted, "env": own}
        workers[i] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": reached | {"dashboard": False, "port": 0}}
    return SpecCluster(workers, scheduler)


def _slurm(jobs: int, wanted: dict[str, int]) -> Any:
    """Workers that are jobs of Slurm: their size, time and partition stand in dask-jobqueue's own
    file."""
    from dask_jobqueue import SLURMCluster

    said = [f"--resources GPU={wanted['GPU']}"] if wanted else []
    try:
        # one worker a job: of several each would think that the job's GPU is its own
        return SLURMCluster(n_workers=jobs, processes=1, worker_extra_args=said)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--cluster slurm: {error}; say cores and memory under jobqueue: slurm: in "
            "~/.config/dask/jobqueue.yaml, see docs/cluster.md"
        ) from error


def _tell_workers(client: Any, wanted: dict[str, int]) -> None:
    """Say how many workers there are, and what is waited for where none can take a run."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    able = [w for w in workers if wanted.items() <= w.get("resources", {}).items()]
    print(f"{len(able)} of {len(workers)} workers can take runs", flush=True)
    if not able:
        asked = " --resources GPU=1" if wanted else ""
        print(f"waiting for workers: dask worker {client.scheduler.address}{asked}", flush=True)
