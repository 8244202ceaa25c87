"""What is measured on a GPU that is lent for minutes is kept: a failing part stops no other, each row is written."""

import time

import pandas as pd
import pytest
import torch

from benchmarks import gpu, throughput


def test_a_part_that_fails_is_named_and_the_others_are_measured(monkeypatch, capsys):
    done = []

    def broken(profile):
        raise RuntimeError("CUDA error: the device is gone\nand a page about it")

    parts = [lambda: done.append(1), gpu.partial(broken, "paper"), lambda: done.append(2)]
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cuda"))
    with pytest.raises(SystemExit, match="broken paper failed; all else was measured"):
        gpu.main()
    assert done == [1, 2]
    assert "broken paper FAILED: RuntimeError: CUDA error: the device is gone\n" in capsys.readouterr().out


def test_a_part_that_hangs_is_cut_off_and_none_begins_when_the_time_is_over(monkeypatch, capsys):
    done = []

    def hanging():
        try:
            time.sleep(60)
        except Exception:  # as a part may hold on to what it does
            time.sleep(60)

    monkeypatch.setattr(gpu, "PARTS", [hanging, gpu.partial(done.append, 1), hanging, gpu.partial(done.append, 2)])
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(gpu, "LIMIT", 0.3)
    with pytest.raises(SystemExit, match="hanging, hanging failed; all else was measured"):
        gpu.main()
    assert done == [1, 2] and capsys.readouterr().out.count("TooLong: cut off") == 2
    monkeypatch.setattr(gpu, "ALL", 0)
    with pytest.raises(SystemExit, match="hanging, append 1, hanging, append 2 failed"):
        gpu.main()
    assert done == [1, 2] and capsys.readouterr().out.count("TooLong: not begun") == 4


def test_a_row_takes_the_place_of_its_like(monkeypatch, tmp_path):
    monkeypatch.setattr(throughput, "RESULTS", tmp_path)

    def write(processor, batch, took):
        throughput.record([throughput.row("cyclegan", "paper", batch, took, 10**12, 1e12) | {"processor": processor}])

    for row in (("A", 1, 0.5), ("A", 2, 1.0), ("B", 1, 2.0), ("A", 1, 0.25)):
        write(*row)
    table = pd.read_csv(tmp_path / "throughput.csv")
    speeds = {(row.processor, row.batch): row.steps_per_second for row in table.itertuples()}
    assert speeds == {("A", 2): 1.0, ("B", 1): 0.5, ("A", 1): 4.0}
