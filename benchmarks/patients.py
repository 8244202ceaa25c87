"""Virtual patients: seconds of one core, what they are spent on, and the memory of a cohort."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mr2ct_lib import cores
from mr2ct_lib.images.intensity import n4
from mr2ct_lib.patients.acquisition import FINE_VOXELS, TEXTURE_MM, acquire_mr, finer_grid
from mr2ct_lib.patients.cohort import CohortSettings, make_patient
from mr2ct_lib.patients.faults import rician, smooth_field
from mr2ct_lib.patients.hip import hip_patient
from mr2ct_lib.patients.physics import SEQUENCES
from mr2ct_lib.patients.scanner import PROFILES

SAMPLE = 6  # patients that stand for all
PAPER_PATIENTS = {"MR": 302, "CT": 613}  # of the first paper
MEMORY = (4, 16)  # patients of the two cohorts whose memory is compared
CHILD = """
import resource, sys
from mr2ct_lib.patients.cohort import make_cohort
if __name__ == "__main__":
    make_cohort("hip", sys.argv[1], int(sys.argv[2]), seed=1, workers=2, progress=False)
    print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Return the processor seconds of a call, the best of three: a busy machine hardly lengthens them."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        work(*arguments)
        taken.append(time.process_time() - started)
    return min(taken)


def parts_of_hip_mr(profile: str) -> dict[str, float]:
    """Return the processor seconds of one hip MR of a profile, and of its parts on their own."""
    grid = PROFILES[profile].grids["hip"]["source"]
    patient, sequence = hip_patient(1), SEQUENCES["hip_spgr"]
    affine = grid.affine(patient.landmarks["centre"])
    fine_shape, fine_affine = finer_grid(grid.shape, affine, grid.supersample)
    slabs = max(1, int(np.prod(fine_shape)) // FINE_VOXELS)  # as acquire_mr does it
    slab = (fine_shape[0], fine_shape[1], max(1, fine_shape[2] // slabs))
    signal = np.ones(grid.shape, np.float32)
    return {
        "whole": seconds(lambda: acquire_mr(patient, grid.shape, affine, sequence, 1, supersample=grid.supersample)),
        "painting": seconds(patient.paint, slab, fine_affine) * fine_shape[2] / slab[2],
        "texture": seconds(smooth_field, slab, fine_affine, TEXTURE_MM, 1) * fine_shape[2] / slab[2],
        "noise": seconds(rician, signal, 0.1, np.random.default_rng(0)),
    }


def patients(anatomy: str, profile: str) -> dict[str, float]:
    """Return the mean processor seconds of a patient, scanned and written, in the source and in the target domain."""
    settings = CohortSettings(anatomy, seed=1, profile=profile)
    with tempfile.TemporaryDirectory() as folder:
        make_patient(settings, Path(folder), (), "s0001")  # tables that are computed once
        return {
            domain: float(np.mean([
                seconds(make_patient, settings, Path(folder), (), f"{domain[0]}{n:04d}") for n in range(1, SAMPLE + 1)
            ]))
            for domain in ("source", "target")
        }  # fmt: skip


def bias_correction() -> float:
    """Return the processor seconds of N4 on a coarse hip MR."""
    grid, patient = PROFILES["coarse"].grids["hip"]["source"], hip_patient(1)
    scan, _ = acquire_mr(patient, grid.shape, grid.affine(patient.landmarks["centre"]), SEQUENCES["hip_spgr"], 1)
    return seconds(n4, scan, None, "coarse")


def memory(count: int) -> tuple[int, int]:
    """Return the largest resident memory in MiB of the process that makes a cohort and of its largest worker."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "child.py"
        script.write_text(CHILD)
        command = [sys.executable, str(script), f"{folder}/c", str(count)]
        environment = os.environ | {"PYTHONPATH": str(Path(cores.__file__).parents[1])}
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    main_process, worker = (int(value) // unit for value in printed.split())
    return main_process, worker


def main() -> None:
    """Print the figures."""
    with cores.pool(1) as pool:  # a process of one thread
        for profile in ("coarse", "full", "paper"):
            grid = PROFILES[profile].grids["hip"]["source"]
            parts = pool.submit(parts_of_hip_mr, profile).result()
            shares = ", ".join(f"{name} {s / parts['whole']:.0%}" for name, s in parts.items() if name != "whole")
            voxels, cuts = (" x ".join(map(str, numbers)) for numbers in (grid.shape, grid.supersample))
            print(f"hip MR, {profile}, {voxels} cut {cuts}: {parts['whole']:.2f} s of one core ({shares})")
        for anatomy in ("hip", "head", "abdomen"):
            for profile in ("coarse", "full"):
                one = pool.submit(patients, anatomy, profile).result()
                pair = f"{sum(one.values()):.2f} s (source {one['source']:.2f}, target {one['target']:.2f})"
                print(f"{anatomy}, {profile}, a pair scanned and written: {pair}")
                if (anatomy, profile) == ("hip", "full"):
                    both = PAPER_PATIENTS["MR"] * one["source"] + PAPER_PATIENTS["CT"] * one["target"]
                    print(f"  the first paper's {PAPER_PATIENTS['MR']} MR and {PAPER_PATIENTS['CT']} CT: "
                          f"{both / 2:.0f} s on 2 cores")  # fmt: skip
        print(f"N4 of a coarse hip MR: {pool.submit(bias_correction).result():.2f} s")
    few, many = (memory(count) for count in MEMORY)
    print(f"memory of a full cohort of {MEMORY[0]} and of {MEMORY[1]} patients per domain: "
          f"{few[0]} and {many[0]} MiB, "
          f"each of its workers {few[1]} and {many[1]} MiB at most")  # fmt: skip
