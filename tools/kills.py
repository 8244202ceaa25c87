"""Kill a small training run at random moments, resume it and compare the bits.

python -m tools.kills [KILLS] [--seed 0] [--method cyclegan]

SIGKILL ends every run one to three times, one time in three while a checkpoint is being written. The run is resumed to
its end. Its networks, optimisers, pools, translator and log must equal those of one uninterrupted run, bit for bit.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from mr2ct_lib.images.intensity import MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.methods.settings import Settings, make_settings

TINY = {
    **{
        "filters": 4,
        "blocks": 1,
        "discriminator_filters": 4,
        "discriminator_layers": 2,
        "batch_size": 2,
        "pool_size": 3,
    },
    **{
        "iterations": 20,
        "decay_iterations": 10,
        "log_every": 1,
        "checkpoint_every": 4,
        "sample_every": 10,
        "augment": True,
    },
    **{"patience": 4, "decay_patience": 4},
}


def make_slices(folder: Path, size: int = 32, count: int = 6) -> Path:
    """Prepared slices of discs in noise, bright in one domain and dark in the other, three patients each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:size, :size]
    for domain, sign in (("source", 1), ("target", -1)):
        centres, radii = rng.uniform(0.4, 0.6, (count, 2)) * size, rng.uniform(0.15, 0.25, count) * size
        inside = [np.hypot(rows - y, columns - x) < r for (y, x), r in zip(centres, radii, strict=True)]
        texture = rng.normal(
            0, 0.1, (count, size, size)
        )  # a flat area sits on a ReLU's edge, where rounding alone decides over all of it
        np.save(
            folder / f"{domain}.npy", (sign * (np.stack(inside) * 1.2 - 0.6) + texture).clip(-1, 1).astype(np.float32)
        )
    patients = [{"id": f"s{i}", "first": i * count // 3, "count": count // 3} for i in range(3)]
    preparation = Preparation("axial", 1.0, (size, size), 1.0, dict.fromkeys(("source", "target"), MR_WINDOW))
    write_record(folder, preparation, {"source": patients, "target": patients})
    return folder


def _train(settings: Settings, data: Path, out: Path, device: str) -> None:
    import torch
    from tqdm.auto import tqdm

    from mr2ct_lib.methods.runs import train

    tqdm.set_lock(threading.RLock())  # not one of the system's, which a kill would leave behind
    torch.set_num_threads(1)
    train(settings, data, out, resume=True, progress=False, device=device)


def contents(run: Path) -> dict[str, object]:
    """What must be equal: file contents, the checkpoint and the log without seconds."""
    import torch

    from mr2ct_lib.methods.runs import read_log

    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    kept = {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("translator", "samples")
        for path in (run / folder).iterdir()
    }
    log = [{key: value for key, value in line.items() if key != "seconds"} for line in read_log(run)]
    return kept | {"checkpoint": {key: value for key, value in checkpoint.items() if key != "seconds"}, "log": log}


def same(a: object, b: object) -> bool:
    """Whether two nested structures are equal to the bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


class Kills:
    """Runs of one small training in processes of their own, forked from a server that has PyTorch loaded already."""

    def __init__(self, folder: Path, method: str = "cyclegan", device: str = "cpu", **changes: object):
        self.folder, self.device = folder, device
        self.settings = make_settings(method, "quick", **TINY | changes)
        self.data = make_slices(folder / "slices")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["mr2ct_lib.methods.runs"])
        self._start("warm").join()
        started = time.perf_counter()
        self._start("whole").join()
        self.seconds = time.perf_counter() - started
        self.whole = contents(folder / "whole")

    def _start(self, name: str) -> multiprocessing.Process:
        process = self.context.Process(target=_train, args=(self.settings, self.data, self.folder / name, self.device))
        process.start()
        return process

    def _logged(self, out: Path) -> int:
        log = out / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def run(self, seed: int) -> tuple[int, int, bool]:
        """Kill and resume one run: (kills, kills while it wrote a checkpoint, whether it ended in the same bits)."""
        kills, writing, out = self.kill_and_resume(seed)
        return kills, writing, (out / "translator").is_dir() and same(contents(out), self.whole)

    def repeat(self, name: str) -> Path:
        """Train the run once more, unkilled; its folder."""
        self._start(name).join()
        return self.folder / name

    def kill_and_resume(self, seed: int) -> tuple[int, int, Path]:
        """Kill a run one to three times and resume it: (kills, those while it wrote a checkpoint, its folder)."""
        rng, out, kills, writing = np.random.default_rng(seed), self.folder / f"seed{seed}", 0, 0
        steps = len(self.whole["log"])
        for _ in range(int(rng.integers(1, 4))):
            process, after = self._start(out.name), rng.integers(0, steps)
            while process.is_alive() and self._logged(out) < after:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 2 * self.seconds / steps))  # up to two steps: any moment of a step is as likely
            if rng.random() < 1 / 3:  # wait for the next checkpoint to be written
                while process.is_alive() and not any(out.glob(".checkpoint.pt.*")):
                    pass
            in_time = process.is_alive()
            process.kill()
            process.join()
            kills, writing = kills + in_time, writing + (in_time and any(out.glob(".checkpoint.pt.*")))
        return kills, writing, self.repeat(out.name)


def main() -> int:
    """Print each run and the sum; 1 when one of them differed."""
    parser = argparse.ArgumentParser(prog="python -m tools.kills", description=__doc__.split("\n\n")[0])
    parser.add_argument("kills", nargs="?", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next ones count on")
    parser.add_argument("--method", default="cyclegan")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, seed, found = Kills(Path(folder), arguments.method), arguments.seed, []
        print(f"{arguments.method}, {len(runs.whole['log'])} steps in {runs.seconds:.1f} s when nothing kills it")
        while sum(kills for kills, _, _ in found) < arguments.kills:
            found.append(runs.run(seed))
            kills, writing, good = found[-1]
            print(
                f"seed {seed}: {kills} kills, {writing} in a checkpoint, {'same bits' if good else 'OTHER BITS'}",
                flush=True,
            )
            seed += 1
    kills, writing, good = (sum(column) for column in zip(*found, strict=True))
    print(
        f"{kills} kills, {writing} of them while a checkpoint was written, in {len(found)} runs "
        f"(seeds {arguments.seed} to {seed - 1}): "
        f"{good} of {len(found)} runs bit-identical to the uninterrupted one"
    )
    return int(good < len(found))


if __name__ == "__main__":
    sys.exit(main())
