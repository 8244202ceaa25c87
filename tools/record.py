"""Recorded results: python -m tools.record {seeds|segmentation} NAME:SEED [NAME:SEED ...] [--profile quick]

Measures the named runs of runs/<profile>/ (training those that are missing) on patients that none of them saw, and writes
results/<what>.csv with results/<what>.json: seeds, settings, versions, hardware, minutes. Runs recorded before stay in the table.
"""

import argparse
import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mr2ct_lib.course import catalogue, experiments
from mr2ct_lib.files import atomic, write_json
from mr2ct_lib.measures import evaluation
from mr2ct_lib.methods.runs import read_log
from mr2ct_lib.methods.translator import DIRECTIONS


def processor() -> str:
    """What is trained or measured on: the GPU's name, or the processor's name with its matrix units."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text(encoding="utf-8").splitlines() if processors.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return name + (" with AMX bf16" if torch.cpu._is_amx_tile_supported() else "")


def provenance_of_machine(profile: str) -> dict[str, Any]:
    """When, on what and with which versions something is measured."""
    return {
        "profile": profile,
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "versions": {package: version(package).split("+")[0] for package in ("mr2ct", "torch", "monai", "numpy")},
    }


def measure_run(name: str, seed: int, profile: str) -> pd.DataFrame:
    """Both directions of a translator on its test patients, a row for each patient."""
    test = experiments.prepared(f"{catalogue.TRAININGS[name].cohort}_test", profile)
    translator = experiments.translator(name, profile, seed)
    tables = []
    for direction in DIRECTIONS:
        slices = np.asarray(getattr(test, direction.split("_to_")[0]))
        found = evaluation.measure(translator.translate(slices, direction), test, direction)
        tables.append(found.assign(run=name, seed=seed, direction=direction))
    return pd.concat(tables)


def measure_segmentation(name: str, seed: int, profile: str) -> pd.DataFrame:
    """Dice and HD95 of the test MRs by the U-Net of a translator, or by a bound: "mr_only" (5 folds), "mr_alone" (as many labels)."""
    test = experiments.prepared("hip_test", profile)
    labels = experiments.mr_only_prediction(profile, seed) if name == "mr_only" else experiments.segment_test(name, profile, seed)
    truth, names = experiments.structures(np.asarray(test.labels_source), test)
    return evaluation.measure_labels(labels, truth, names, test).assign(run=name, seed=seed)


def provenance(name: str, seed: int, profile: str) -> dict[str, Any]:
    """Settings and minutes of one run."""
    if name in ("mr_only", *catalogue.ALONE):
        return {"unet": catalogue.UNETS[profile]}
    run = experiments.run(name, profile, seed)
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
    when = {"date": datetime.date.today().isoformat(), "threads": torch.get_num_threads()}
    return {"settings": settings, "minutes": round(read_log(run)[-1]["seconds"] / 60, 2)} | when


def record(what: str, runs: list[tuple[str, int]], profile: str, folder: Path) -> Path:
    """Measure `runs` and put them into the table and its provenance; a run that is there already is measured anew."""
    measure = {"seeds": measure_run, "segmentation": measure_segmentation}[what]
    table, notes = folder / f"{what}.csv", folder / f"{what}.json"
    known = pd.read_csv(table) if table.exists() else pd.DataFrame({"run": [], "seed": []})
    about = json.loads(notes.read_text(encoding="utf-8"))["runs"] if notes.exists() else {}
    for name, seed in runs:
        found = measure(name, seed, profile)
        known = pd.concat([known[(known.run != name) | (known.seed != seed)], found])
        about[f"{name}:{seed}"] = provenance(name, seed, profile)
        print(f"{name}, seed {seed}: {found.mean(numeric_only=True).round(3).to_dict()}", flush=True)
    first = ["run", "seed", *(["direction"] if what == "seeds" else [])]
    known = known[first + [column for column in known if column not in first]].astype({"seed": int}).sort_values([*first, "patient"])
    with atomic(table) as temporary:
        known.to_csv(temporary, index=False, float_format="%.5g")
    counts = {name: plan.patients[profile] for name, plan in catalogue.COHORTS.items()} | {"few": catalogue.FEW[profile]}
    general = provenance_of_machine(profile) | {"patients": counts}
    write_json(general | {"runs": dict(sorted(about.items()))}, notes)
    return table


def main() -> None:
    """Read the arguments and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["seeds", "segmentation"])
    parser.add_argument("runs", nargs="+", help="NAME:SEED of mr2ct_lib.course.catalogue.TRAININGS, mr_only:SEED or mr_alone:SEED")
    parser.add_argument("--profile", default="quick")
    arguments = parser.parse_args()
    pairs = [(name, int(seed)) for name, _, seed in (run.partition(":") for run in arguments.runs)]
    print(record(arguments.what, pairs, arguments.profile, experiments.RESULTS))


if __name__ == "__main__":
    main()
