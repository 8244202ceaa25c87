"""Many processes equal one; a lost process, a missing GPU and a port in use are named."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from tiny_runs import TINY

from mr2ct_lib.files import InputError
from mr2ct_lib.methods import distributed
from mr2ct_lib.methods.runs import read_log, train
from mr2ct_lib.methods.settings import make_settings
from tools import kills

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices per domain, discs, bright in one domain and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


def start(out, both, data, *more):
    """A process of `mr2ct train` with the settings of `both`."""
    words = [
        sys.executable,
        "-m",
        "mr2ct_lib.cli",
        "train",
        "cyclegan",
        "--data",
        data,
        "--out",
        out,
        "--device",
        "cpu",
        *more,
    ]
    for name, value in both.items():
        words += ["--set", f"{name}={value}"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(w) for w in words], env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def test_two_processes_equal_one_and_a_lost_one_ends_the_run_which_goes_on_alone(data, tmp_path):
    """Five steps agree to 1e-5. Then the second process dies; the first says so and ends, and one process resumes."""
    both = TINY | {
        "iterations": 12,
        "decay_iterations": 0,
        "precision": "float32",
        "sample_every": 0,
        "checkpoint_every": 5,
    }
    s = make_settings("cyclegan", **both)
    one = read_log(train(s, data, tmp_path / "one", device="cpu"))
    (tmp_path / "sitecustomize.py").write_text(  # the second process kills itself in its ninth step
        "import os, signal\n"
        "if os.environ.get('RANK') == '1' and 'mr2ct_lib.cli' in ' '.join(__import__('sys').orig_argv):\n"
        "    from mr2ct_lib.methods.training import Trainer\n"
        "    step = Trainer.step\n"
        "    Trainer.step = lambda t: os.kill(os.getpid(), signal.SIGKILL) if t.step_number == 8 else step(t)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        run = start(tmp_path / "two", both, data, "--torchrun", "--nproc-per-node 2")
        said = run.communicate()[1]
    assert run.returncode == 2 and "Traceback" not in said
    assert "process 1 of the run was ended by SIGKILL" in said and "--resume" in said
    assert len(read_log(tmp_path / "two")) == 8
    two = read_log(train(s, data, tmp_path / "two", resume=True, device="cpu"))
    assert [line["step"] for line in two] == list(range(1, 13))
    for number, (a, b) in enumerate(zip(one, two, strict=True)):
        for name in a.keys() - {"seconds"}:
            # the log holds six decimals; later the game enlarges rounding, and a mistake in resuming more than this
            assert b[name] == pytest.approx(a[name], rel=1e-5 if number < 5 else 0.05, abs=2e-6)


def test_two_launchers_as_on_two_machines_equal_one_process(data, tmp_path):
    """docs/engine.md's command line for two machines, both played by this one."""
    both = TINY | {"iterations": 5, "decay_iterations": 0, "precision": "float32", "sample_every": 0}
    one = read_log(train(make_settings("cyclegan", **both), data, tmp_path / "one", device="cpu"))
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    options = f"--nnodes 2 --master-addr localhost --master-port {port} --nproc-per-node 1 --node-rank"
    machines = [start(tmp_path / "two", both, data, "--torchrun", f"{options} {rank}") for rank in (0, 1)]
    said = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    for a, b in zip(one, read_log(tmp_path / "two"), strict=True):
        assert {name: b[name] for name in a.keys() - {"seconds"}} == pytest.approx(
            {name: a[name] for name in a.keys() - {"seconds"}}, rel=1e-5, abs=2e-6
        )


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.choose_device("auto") == "cpu"
    with pytest.raises(InputError, match="sees no GPU here; take --device cpu"):
        distributed.choose_device("cuda")
    with pytest.raises(InputError, match="expected one of auto, cpu, cuda"):
        distributed.choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.choose_device("auto", 2) == distributed.choose_device("cuda") == "cuda"
    with pytest.raises(InputError, match="3 processes and 2 GPUs"):
        distributed.choose_device("auto", 3)


class TwoProcesses:
    world_size = 2


@pytest.mark.parametrize(
    "happens, words",
    [
        (
            lambda: (_ for _ in ()).throw(RuntimeError("[gloo] Connection closed by peer")),
            "connection to another process was lost",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "was told to end"),
    ],
)
def test_a_lost_process_is_said_with_what_to_do(happens, words):
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(distributed.LostProcess, match=f"runs/a, step 7: .*{words}.*--resume"),
        distributed.report_lost_process(TwoProcesses, lambda: "runs/a, step 7"),
    ):
        happens()
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(RuntimeError, match="out of memory"), distributed.report_lost_process(TwoProcesses, str):
        raise RuntimeError("out of memory")
