"""Fixtures that all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TINY

from mr2ct_lib.course import experiments
from mr2ct_lib.images.intensity import Window

REAL_DATA = Path(os.environ.get("MR2CT_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; the test is skipped where there is none (set MR2CT_REAL_DATA to point at it)."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real scans here; set MR2CT_REAL_DATA to the folder that holds them")
    return REAL_DATA


@pytest.fixture
def mr2ct(monkeypatch, capsys):
    """mr2ct(*words) -> (exit code, stdout, stderr), in this process."""

    from mr2ct_lib import cli

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mr2ct", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run a module's tests on one thread: tiny networks lose by more, and bits are equal only so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


if torch.cuda.device_count():  # a driver that starts while `no_gpu` hides the GPUs would find none later either
    torch._C._cuda_getDeviceCount()


@pytest.fixture(scope="module", autouse=True)
def no_gpu(request) -> Iterator[None]:
    """All tests but those of test_gpu.py, and the commands they start see no GPU: bits are equal on a CPU only."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_gpu.py":
            patch.setattr(torch.cuda, "device_count", lambda: 0)
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def chain(one_thread, tmp_path_factory):
    """A folder with cohort/, prepared/ and run/ (two steps), made by the commands themselves."""
    from mr2ct_lib import cli

    folder = tmp_path_factory.mktemp("chain")
    words = [
        ["cohort", "hip", "--profile", "coarse", "--patients", "2", "--seed", "1", "--out", folder / "cohort"],
        ["prepare", folder / "cohort", "--profile", "coarse", "--out", folder / "prepared"],
        ["train", "cyclegan", "--data", folder / "prepared", "--out", folder / "run", *TINY, "--set", "iterations=2"],
    ]
    with pytest.MonkeyPatch.context() as patch:
        for command in words:
            patch.setattr(sys, "argv", ["mr2ct", *map(str, command)])
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code
    return folder


@pytest.fixture
def hips(monkeypatch):
    """Two patients of two slices: bone and muscle, the CT the negative of the MR; any cohort is this one."""
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[:, 5:35, 5:35], labels[:, 15:25, 15:25] = 3, 2
    image = np.choose(labels, [-1, 0, 0.6, -0.2]).astype(np.float32)
    image += np.random.default_rng(0).normal(0, 0.05, image.shape).astype(np.float32)
    windows = {"source": Window(0, 100, "%"), "target": Window(-150, 350, "HU")}
    data = SimpleNamespace(
        folder="scratch", source=-image, target=image, labels_source=labels, labels_target=labels, valid=None,
        truth_source_to_target=None, truth_target_to_source=None, windows=windows,
        meta={"anatomy": "hip", "label_names": {"0": "background", "2": "femur", "3": "sartorius"}},
        preparation=SimpleNamespace(spacing=(2.0, 2.0)),
        patients=lambda domain: [("p1", slice(0, 2)), ("p2", slice(2, 4))],
    )  # fmt: skip
    monkeypatch.setattr(experiments, "prepared", lambda *_: data)
    return data
