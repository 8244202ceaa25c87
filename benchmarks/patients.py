"""Virtual patients: seconds of one core, what they are spent on, and the memory of a cohort."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mr2ct_lib import cores
from mr2ct_lib.images.intensity import n4
from mr2ct_lib.patients import scanner
from mr2ct_lib.patients.hip import hip_patient
from mr2ct_lib.patients.physics import SEQUENCES, acquire_mr, finer_grid, rician, smooth_field

SAMPLE = 6  # patients that stand for 300
MEMORY = (4, 16)  # patients of the two cohorts whose memory is compared
CHILD = """
import resource, sys
from mr2ct_lib.patients.scanner import make_cohort
if __name__ == "__main__":
    make_cohort("hip", sys.argv[1], int(sys.argv[2]), seed=1, workers=2, progress=False)
    print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def seconds(work, *arguments) -> float:
    """Processor seconds of a call, the best of three: a busy machine makes them hardly more."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        work(*arguments)
        taken.append(time.process_time() - started)
    return min(taken)


def hip(profile: str) -> dict[str, float]:
    """Processor seconds of one hip MR of a profile, and of its parts on their own."""
    grid = scanner.ACQUISITIONS["hip"][profile]["source"]
    patient = hip_patient(1)
    affine = grid.affine(patient.landmarks["centre"])
    fine_shape, fine_affine = finer_grid(grid.shape, affine, grid.supersample)
    share = max(1, int(np.prod(fine_shape)) // 6_000_000)  # painted in slabs, as acquire_mr does it
    slab = (fine_shape[0], fine_shape[1], max(1, fine_shape[2] // share))
    signal = np.ones(grid.shape, np.float32)
    return {
        "whole": seconds(
            lambda: acquire_mr(patient, grid.shape, affine, SEQUENCES["hip_spgr"], 1, supersample=grid.supersample)
        ),
        "painting": seconds(patient.paint, slab, fine_affine) * fine_shape[2] / slab[2],
        "texture": seconds(smooth_field, slab, fine_affine, 9.0, 1) * fine_shape[2] / slab[2],
        "noise": seconds(rician, signal, 0.1, np.random.default_rng(0)),
    }  # fmt: skip


def quick_patients() -> dict[str, float]:
    """Processor seconds of a quick patient, whole (scanned and written), MR and CT, and of its N4."""
    settings = scanner._settings("hip", 1, False, "quick", None, None, None, False, False)
    with tempfile.TemporaryDirectory() as folder:
        scanner.make_patient(settings, Path(folder), (), "s0001")  # what is computed once
        found = {
            name: np.mean([seconds(scanner.make_patient, settings, Path(folder), (), f"{role}{n:04d}") for n in range(1, SAMPLE + 1)])
            for name, role in (("MR", "s"), ("CT", "t"))
        }
    grid = scanner.ACQUISITIONS["hip"]["quick"]["source"]
    patient = hip_patient(1)
    scan, _ = acquire_mr(patient, grid.shape, grid.affine(patient.landmarks["centre"]), SEQUENCES["hip_spgr"], 1)
    return {name: float(value) for name, value in found.items()} | {"N4": seconds(n4, scan, None, "quick")}


def memory(patients: int) -> tuple[int, int]:
    """Largest resident memory in MiB of the process that makes a cohort and of its largest worker."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "child.py"
        script.write_text(CHILD)
        command = [sys.executable, str(script), f"{folder}/c", str(patients)]
        environment = os.environ | {"PYTHONPATH": str(Path(scanner.__file__).parents[2])}
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    own, worker = (int(value) // unit for value in printed.split())
    return own, worker


def main() -> None:
    """Print the figures."""
    for profile in ("quick", "paper"):
        grid = scanner.ACQUISITIONS["hip"][profile]["source"]
        with cores.pool(1) as pool:  # a process of one thread
            parts = pool.submit(hip, profile).result()
        shares = ", ".join(f"{name} {value / parts['whole']:.0%}" for name, value in parts.items() if name != "whole")
        voxels = " x ".join(map(str, grid.shape))
        print(f"hip MR, {profile}, {voxels} cut {' x '.join(map(str, grid.supersample))}: {parts['whole']:.2f} s of one core ({shares})")
    with cores.pool(1) as pool:
        one = pool.submit(quick_patients).result()
    print(f"quick hip, scanned and written: MR {one['MR']:.2f} s, CT {one['CT']:.2f} s, N4 of an MR {one['N4']:.2f} s of one core")
    larger, longer = 72**3 / (64 * 12 * 64), one["CT"] / one["MR"]
    print(f"300 quick MR patients: {150 * one['MR']:.0f} s on 2 cores")
    print(f"a quick CT has {larger:.1f} times the voxels of an MR and takes {longer:.1f} times as long")
    few, many = (memory(count) for count in MEMORY)
    print(f"memory of a quick cohort of {MEMORY[0]} and of {MEMORY[1]} patients a domain: {few[0]} and {many[0]} MiB, "
          f"each of its workers {few[1]} and {many[1]} MiB at most")  # fmt: skip
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10} MiB")


if __name__ == "__main__":
    main()
