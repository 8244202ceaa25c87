"""prepare and folders of scans on two Dask workers of this machine, one of them killed: the same bytes as locally."""

import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from mr2ct_lib.cores import run_jobs
from mr2ct_lib.files import InputError

pytestmark = pytest.mark.usefixtures("one_thread")  # as the workers have


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=100) as local:
        yield local


@pytest.fixture
def killed_worker(cluster):
    """killed_worker(folder, pattern): kill a worker as soon as the folder holds such a file."""
    killers = []

    def kill(folder, pattern):
        def work():
            deadline = time.monotonic() + 60
            while not list(folder.glob(pattern)) and time.monotonic() < deadline:
                time.sleep(0.01)
            process = next(iter(cluster.workers.values())).pid
            os.kill(process, signal.SIGKILL)

        killers.append(threading.Thread(target=work))
        killers[-1].start()

    yield kill
    for killer in killers:
        killer.join()


@pytest.fixture
def scans(chain, tmp_path):
    """Six scans of two patients."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(6):
        shutil.copy(chain / f"cohort/source/s000{number % 2 + 1}.nii.gz", folder / f"scan{number}.nii.gz")
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_on_a_cluster_gives_the_same_bytes_though_a_worker_dies(chain, cluster, killed_worker, mr2ct, tmp_path):
    killed_worker(tmp_path / "cluster.unfinished", "*.json")
    words = ["prepare", chain / "cohort", "--profile", "coarse", "--out", tmp_path / "cluster"]
    words += ["--scheduler", cluster.scheduler_address]
    code, out, err = mr2ct(*words)
    assert code == 0 and "target slices" in out, err
    cluster_files, local_files = contents(tmp_path / "cluster"), contents(chain / "prepared")
    assert cluster_files == local_files
    assert [path.name for path in tmp_path.iterdir()] == ["cluster"]


def test_prepare_on_a_cluster_lists_failures_and_repeats_only_these(chain, cluster, mr2ct, tmp_path):
    for domain in ("source", "target"):
        (tmp_path / "own" / domain).mkdir(parents=True)
        for path in (chain / "cohort" / domain).iterdir():
            shutil.copy(path, tmp_path / "own" / domain)
    scan = tmp_path / "own/source/s0002.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[: len(whole) // 2])
    words = ["prepare", tmp_path / "own", "--out", tmp_path / "p", "--scheduler", cluster.scheduler_address]
    code, _, err = mr2ct(*words)
    assert code == 2 and "1 of 4 patients failed" in err and "s0002.nii.gz" in err and not (tmp_path / "p").exists()
    kept = {path.name: np.load(path) for path in (tmp_path / "p.unfinished").glob("*.npy")}
    assert sorted(kept) == ["0_source.npy", "2_target.npy", "3_target.npy"]
    marked = np.full_like(kept["0_source.npy"], 0.25)  # to tell it from the same array made again
    np.save(tmp_path / "p.unfinished/0_source.npy", marked)
    scan.write_bytes(whole)
    assert mr2ct(*words)[0] == 0
    slices = np.load(tmp_path / "p/source.npy")
    np.testing.assert_array_equal(slices[: len(marked)], marked)
    assert not (slices[len(marked) :] == 0.25).all()
    assert not (tmp_path / "p.unfinished").exists()


def test_scans_on_a_cluster_give_the_same_bytes_although_a_worker_dies(
    chain, cluster, killed_worker, scans, mr2ct, tmp_path
):
    assert mr2ct("synthesize", chain / "run", scans, "--out", tmp_path / "local")[0] == 0
    (scans / "damaged.nii.gz").write_text("no image")
    killed_worker(tmp_path / "cluster", "scan*.nii.gz")
    words = ["synthesize", chain / "run", scans, "--out", tmp_path / "cluster"]
    words += ["--scheduler", cluster.scheduler_address]
    code, out, err = mr2ct(*words)
    assert code == 1 and "6 synthesized, 0 there already, 1 failed" in out and "damaged: " in err
    assert contents(tmp_path / "cluster") == contents(tmp_path / "local")
    (scans / "damaged.nii.gz").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cluster").iterdir()}
    code, out, _ = mr2ct(*words)
    assert code == 0 and "0 synthesized, 6 there already, 0 failed" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cluster").iterdir()} == before


@pytest.mark.parametrize("content", ["{broken", "[]", "{}"])
def test_a_scheduler_file_that_names_no_address_is_said(content, tmp_path):
    (tmp_path / "scheduler.json").write_text(content)
    with pytest.raises(InputError, match="scheduler.json: (is not JSON|names no address)"):
        list(run_jobs(pow, [(2, 3)], scheduler=str(tmp_path / "scheduler.json")))


def test_a_scheduler_that_is_not_there_leaves_nothing(chain, mr2ct, tmp_path):
    (tmp_path / "scheduler.json").write_text("{}")
    words = ["prepare", chain / "cohort", "--out", tmp_path / "prepared", "--scheduler", tmp_path / "scheduler.json"]
    code, _, err = mr2ct(*words)
    assert code == 2 and "names no address" in err
    assert [path.name for path in tmp_path.iterdir()] == ["scheduler.json"]


def test_a_scheduler_that_is_lost_half_way_is_said():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=100
    ) as local:
        errors = []
        for outcome in run_jobs(time.sleep, [(0.2,)] * 4, scheduler=local.scheduler_address):
            errors.append(outcome.error)
            local.close()
    assert errors[0] is None and len(errors) == 4
    assert any("scheduler" in str(error) and "was lost" in str(error) for error in errors[1:])


def test_one_scan_needs_no_cluster(chain, mr2ct, tmp_path):
    scan = chain / "cohort/source/s0001.nii.gz"
    words = ["synthesize", chain / "run", scan, "--out", tmp_path / "ct.nii.gz", "--scheduler", "tcp://127.0.0.1:1"]
    code, _, err = mr2ct(*words)
    assert code == 2 and "expected a folder of scans" in err
