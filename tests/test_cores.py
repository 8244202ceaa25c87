"""Jobs in this process, in local processes and on a Dask cluster: same results, own errors, nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from mr2ct_lib import cores, files
from mr2ct_lib.files import InputError, atomic
from mr2ct_lib.images.volumes import read_volume
from mr2ct_lib.patients.cohort import make_cohort


def dies_once(folder: str, number: int) -> int:
    """Kill the process that runs job 1 for the first time."""
    marker = Path(folder) / "died"
    if number == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def makes(folder: str, dies: bool = False) -> None:
    """Make folder/thing in a second, or die meanwhile; each beginning is a line of folder/begun."""
    thing = Path(folder) / "thing"

    def make() -> None:
        with open(thing.with_name("begun"), "a") as begun:
            begun.write("begun\n")
        time.sleep(1)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        thing.touch()

    cores.make_once(thing, "a thing", thing.exists, make)


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=100) as local:
        yield local


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_stops_its_own_job_only(workers):
    outcomes = {outcome.number: outcome for outcome in cores.run_jobs(sqrt, [(4.0,), (-1.0,), (9.0,)], workers=workers)}
    assert outcomes[0].value == 2 and outcomes[2].value == 3 and outcomes[0].error is None
    assert isinstance(outcomes[1].error, ValueError) and outcomes[1].value is None


def test_no_jobs_need_no_process():
    assert list(cores.run_jobs(sqrt, [], workers=4)) == []


def test_common_arguments_come_first():
    outcomes = cores.run_jobs(divmod, [(4,), (5,)], workers=2, common=(23,))
    assert {outcome.number: outcome.value for outcome in outcomes} == {0: (5, 3), 1: (4, 3)}


def test_a_killed_local_process_is_named(tmp_path):
    with pytest.raises(InputError, match="ended from outside"):
        list(cores.run_jobs(dies_once, [(n,) for n in range(3)], workers=2, common=(str(tmp_path),)))


HOLD = """
import sys, time
from mr2ct_lib import cores
from mr2ct_lib.files import atomic

def hold(path):
    with atomic(path) as temporary:
        temporary.write_text("half")
        for _ in range(3000):  # one long sleep would miss a signal that comes just before it
            time.sleep(0.02)

if __name__ == "__main__":
    list(cores.run_jobs(hold, [(f"{sys.argv[1]}/{n}",) for n in range(3)], workers=int(sys.argv[2])))
"""


@pytest.mark.parametrize("workers, number", [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGKILL)])
def test_an_ended_program_leaves_no_process_and_no_hidden_folder(tmp_path, workers, number):
    (tmp_path / "hold.py").write_text(HOLD)
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(Path(cores.__file__).parents[1])}
    command = [sys.executable, tmp_path / "hold.py", out, str(workers)]
    program = subprocess.Popen(command, start_new_session=True, env=environment)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".*/[0-9]"))) < workers:  # each worker is in the middle of its file
        assert program.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    program.send_signal(number)
    assert program.wait(timeout=30) == (cores.TERMINATED if number == signal.SIGTERM else -number)
    with pytest.raises(ProcessLookupError):  # the whole process group is gone
        while time.monotonic() < deadline:
            os.killpg(program.pid, 0)
            time.sleep(0.02)
    assert list(out.iterdir()) == []


def test_what_a_killed_program_left_goes_with_the_next_write_of_the_same_path(tmp_path):
    write = "import sys, time; from mr2ct_lib.files import atomic\nwith atomic(sys.argv[1]) as path:\n    "
    write += "path.write_text('half')\n    time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(Path(cores.__file__).parents[1])}
    program = subprocess.Popen([sys.executable, "-c", write, tmp_path / "a.txt"], env=environment)
    while not list(tmp_path.glob(".a.txt.*/a.txt")):
        assert program.poll() is None
        time.sleep(0.02)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("of another program")
    assert len(list(tmp_path.glob(".*"))) == 1  # what a living program writes is left alone
    program.kill()
    program.wait()
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "whole"


def test_a_write_whose_folder_another_writer_took_for_left_over_is_whole(tmp_path, monkeypatch):
    """The other one comes between the making of the lock and its locking."""
    locked, taken = files._locked, []

    def late(lock, wait=False):
        if not taken:
            taken.append(Path(lock.name).parent)
            shutil.rmtree(taken[0])
        return locked(lock, wait)

    monkeypatch.setattr(files, "_locked", late)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert taken and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_writer_waits_for_one_that_removes_its_folder_and_makes_another(tmp_path, monkeypatch):
    locked, others = files._locked, []

    def late(lock, wait=False):
        if not others:
            room, other = Path(lock.name).parent, open(lock.name, "r+")  # noqa: SIM115
            assert locked(other)
            others.append(threading.Timer(0.3, lambda: (shutil.rmtree(room), other.close())))
            others[0].start()
        return locked(lock, wait)

    monkeypatch.setattr(files, "_locked", late)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    others[0].join()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["run", "previous"])
def test_a_folder_is_replaced_as_a_whole_and_stays_where_the_new_one_is_missing(name, tmp_path):
    folder = tmp_path / name
    for text in ("old", "new"):
        with atomic(folder) as temporary:
            temporary.mkdir()
            (temporary / text).touch()
        assert [path.name for path in folder.iterdir()] == [text]
    with pytest.raises(InputError, match=f"{name}: writing failed"), atomic(folder):
        pass  # nothing is written
    assert [path.name for path in folder.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [folder]


def test_a_handler_of_somebody_else_stays():
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with cores.sigterm_exits():
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, mine)
    with cores.sigterm_exits():
        assert signal.getsignal(signal.SIGTERM) is not mine
    assert signal.getsignal(signal.SIGTERM) is mine


def test_a_cluster_does_a_killed_workers_job_again(cluster, tmp_path):
    options = {"scheduler": cluster.scheduler_address, "common": (str(tmp_path),)}
    outcomes = list(cores.run_jobs(dies_once, [(n,) for n in range(4)], **options))
    assert (tmp_path / "died").exists()
    assert sorted((outcome.number, outcome.value) for outcome in outcomes) == [(0, 0), (1, 1), (2, 4), (3, 9)]


def test_a_cohort_made_on_a_cluster_is_the_same_although_a_worker_is_killed(cluster, tmp_path):
    killed, over = [], threading.Event()

    def kill_one(folder):
        while not over.is_set() and not list(folder.glob("patients/*.json")):
            time.sleep(0.02)
        if not over.is_set():
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, args=(tmp_path / "cluster",))
    killer.start()
    options = {"patients": 3, "seed": 4, "progress": False}
    try:
        remote = make_cohort("head", tmp_path / "cluster", scheduler=cluster.scheduler_address, **options)
    finally:
        over.set()
        killer.join()
    assert killed
    local = make_cohort("head", tmp_path / "local", workers=1, **options)
    assert remote.meta == local.meta
    for kind in ("source", "target", "labels"):
        for path in (local.folder / kind).iterdir():
            here, there = (
                read_volume(folder / kind / path.name, "a.u.").array for folder in (local.folder, remote.folder)
            )
            np.testing.assert_array_equal(here, there)
    finished = {path: path.stat().st_mtime_ns for path in remote.folder.glob("patients/*.json")}
    make_cohort("head", tmp_path / "cluster", scheduler="tcp://127.0.0.1:1", **options)  # nothing is left to do
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())


def test_a_cluster_hands_back_errors(cluster):
    ended = cores.run_jobs(sqrt, [(-1.0,), (4.0,)], scheduler=cluster.scheduler_address)
    first, second = sorted(ended, key=lambda outcome: outcome.number)
    assert isinstance(first.error, ValueError) and second.value == 2


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        list(cores.run_jobs(sqrt, [(4.0,)], scheduler="nonsense://1"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="not installed"):
        list(cores.run_jobs(sqrt, [(4.0,)], scheduler="tcp://127.0.0.1:1"))


def test_of_several_processes_that_want_a_thing_one_makes_it_and_the_others_wait(tmp_path):
    outcomes = list(cores.run_jobs(makes, [(str(tmp_path),)] * 3, workers=3))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert (tmp_path / "thing").exists() and (tmp_path / "begun").read_text() == "begun\n"


def test_when_the_process_that_makes_a_thing_is_killed_the_next_one_makes_it(tmp_path):
    code = f"from tests.test_cores import makes; makes({str(tmp_path)!r}, dies=True)"
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    while killed.poll() is None and not (tmp_path / "begun").exists():
        time.sleep(0.05)
    makes(str(tmp_path))  # waits for the one that dies
    assert killed.wait() == -signal.SIGKILL
    assert (tmp_path / "thing").exists() and (tmp_path / "begun").read_text() == "begun\n" * 2


def test_where_nothing_can_be_written_the_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file.other: cannot be written"):
        cores.make_once(tmp_path / "file" / "other", "another", lambda: False, lambda: None)
