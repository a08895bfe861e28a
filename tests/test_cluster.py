"""A Dask cluster that is there: who takes its tasks, and what is said where nobody can."""

import dask
import dask_jobqueue  # noqa: F401  before a test sets values beside its defaults
import pytest
from distributed import LocalCluster

from protolib.study import cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address():
    """A scheduler with one worker, without a GPU, in threads of this process."""
    said = {"n_workers": 1, "processes": False, "protocol": "tcp", "dashboard_address": None}
    with LocalCluster(host="127.0.0.1", threads_per_worker=1, **said) as made:
        yield made.scheduler_address


def test_tasks_are_done_by_the_workers_of_an_address(address, capsys):
    with cluster.executor(address, "cpu", 0, []) as pool:
        assert [pool.submit(pow, 2, n).result() for n in range(3)] == [1, 2, 4]
    assert capsys.readouterr().out == "1 of 1 workers can take runs\n"


def test_what_takes_a_gpu_waits_for_a_worker_that_has_one(address, capsys):
    with cluster.executor(address, "cuda", 0, []) as pool:
        task = pool.submit(pow, 2, 3)
        with pytest.raises(TimeoutError):
            task.result(timeout=1)
        task.cancel()
    assert capsys.readouterr().out == (
        "0 of 1 workers can take runs\n"
        f"waiting for workers: dask worker {address} --resources GPU=1\n"
    )


def test_no_scheduler_is_said(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(ValueError, match="--cluster tcp://127.0.0.1:9: no scheduler answers there"):
        with cluster.executor("tcp://127.0.0.1:9", "cpu", 0, []):
            pass


def test_slurm_jobs_ask_for_what_the_user_has_said():
    size = {"jobqueue.slurm.cores": 2, "jobqueue.slurm.memory": "5GB"}
    with dask.config.set(size | {"jobqueue.slurm.interface": "lo"}):
        with cluster._slurm(0, {"GPU": 1}) as made:
            script = made.job_script()
    assert "#SBATCH --cpus-per-task=2" in script and "#SBATCH --mem=5G" in script
    assert "--nthreads 2" in script and "--resources GPU=1" in script
