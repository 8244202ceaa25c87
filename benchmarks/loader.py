"""Slices a second of the loader against those of the step, and resident memory with 915 patients' slices on disk."""

import subprocess
import sys

from benchmarks.measure import SIZES, prepared, seconds, show, trainer
from mr2ct_lib.images.slices import augment, unpaired_batch
from mr2ct_lib.methods.settings import make_settings

MEMORY = """
import json, tempfile, numpy as np
from pathlib import Path
def resident():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1]) / 1024
folder = Path(tempfile.mkdtemp(prefix='mr2ct_bench_'))
from mr2ct_lib.images.intensity import MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.images.slices import PreparedSlices, unpaired_batch, augment
patients = {}
for domain, count in (('source', 302), ('target', 613)):
    # a sparse file: zeros take no disk
    array = np.lib.format.open_memmap(folder / f'{domain}.npy', 'w+', np.float32, (38 * count, 256, 256))
    del array
    patients[domain] = [{'id': str(i), 'first': 38 * i, 'count': 38} for i in range(count)]
windows = {'source': MR_WINDOW, 'target': MR_WINDOW}
write_record(folder, Preparation('axial', 1.0, (256, 256), 1.0, windows), patients)
data = PreparedSlices(folder)
for step in range(1500):
    batch = unpaired_batch(data, step, 1, 7)
    if step % 50 == 0: [augment(x, (7, step, i)) for i, x in enumerate(batch)]
print(resident())
import shutil; shutil.rmtree(folder)
"""


def main() -> None:
    """Print both sizes, with the augmentation of the DicycleGAN paper profile."""
    for profile in ("quick", "paper"):
        data, n, at = prepared(SIZES[profile]), make_settings("dicyclegan", profile).batch_size, iter(range(10**9))

        def load(data=data, n=n, at=at) -> None:
            step = next(at)
            for i, batch in enumerate(unpaired_batch(data, step, n, 7)):
                augment(batch, (7, step, i))

        took = seconds(
            {"load": load, "step": trainer("dicyclegan", profile).step}, rounds=9 if profile == "quick" else 3
        )
        rate = f"{2 * n / took['load']:.0f} slices a second"
        show(f"{profile}: loader's slices a second : step's", took["step"] / took["load"], ">= 10", rate)
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    show("resident memory with 915 patients of 256x256x38, MB", float(done.stdout), "< 2048", "9.1 GB on disk")
