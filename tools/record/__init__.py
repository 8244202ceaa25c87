"""Recorded results: train, measure and write down every experiment of the catalogue, the most important first.

    python -m tools.record [--profile full] [--budget 120] [--workers 2] [--only hip] [--again]
    python -m tools.record missing [--profile full]
    python -m tools.record tables [--profile full]

The first form goes through `catalogue.RECORDED`, skips what is recorded, and stops when the budget (minutes) is used
up; a training that is cut off continues from its last checkpoint next time. It writes results/<profile>/: one CSV per
anatomy with a row per run, seed, split, direction and patient, tissues.csv, segmentation.csv, provenance.json and
missing.txt; of the full profile also translators and U-Nets in half precision. `tables` makes the tables and tests of
results/<profile>/tables/ from these files again, byte for byte.
"""

import argparse
import copy
import dataclasses
import datetime
import platform
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mr2ct_lib import __version__, cores
from mr2ct_lib.course import experiments
from mr2ct_lib.course.catalogue import COHORTS, RECORDED, SEEDS, SHOWN, TRAININGS, training_settings
from mr2ct_lib.files import InputError, atomic, read_json, write_json
from mr2ct_lib.methods.captured import shared_gpu
from mr2ct_lib.methods.runs import read_log
from mr2ct_lib.methods.segmentation import Segmenter, save_segmenter
from mr2ct_lib.methods.settings import PROFILES
from mr2ct_lib.methods.translator import Translator, load_translator
from tools.measuring import (
    SPLITS,
    finished_translator,
    measure_frames,
    measure_mean,
    measure_segmentation,
    measure_translator,
)
from tools.result_tables import write_tables

# columns that say what a row is
KEYS = ["run", "seed", "cohort", "split", "direction", "patient", "tissue", "structure"]
DEFORMED = "head_distorted_dicyclegan"  # of the kept translators, the one whose deformed pass a notebook shows
Job = tuple[str, str, int]  # kind, name, seed: see catalogue.RECORDED
Result = tuple[dict[str, pd.DataFrame], dict[str, Any]]  # {file: new rows}, provenance


class OutOfTime(BaseException):
    """The budget is used up. Like Ctrl-C, nothing may take it for an error of a job."""


# --- what was measured, with what, on what ---


def processor() -> str:
    """Return what is trained or measured on: the GPU's name, or the processor's name with its matrix units."""
    if torch.cuda.device_count():
        return torch.cuda.get_device_name()
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text(encoding="utf-8").splitlines() if processors.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return name + (" with AMX bf16" if torch.cpu._is_amx_tile_supported() else "")


def provenance_of_machine(profile: str) -> dict[str, Any]:
    """Return when, on what and with which versions something is measured."""
    return {
        "profile": profile,
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "versions": {"mr2ct": __version__}
        | {package: version(package).split("+")[0] for package in ("torch", "monai", "numpy")},
    }


def commit() -> str:
    """Return the commit of this checkout, with "+" when files other than results differ; "unknown" outside of git."""
    describe, status = ["describe", "--always", "--exclude=*"], ["status", "--porcelain", "--untracked-files=no"]
    try:
        name, changed = (
            subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (describe, [*status, "--", ":/", ":(top,exclude)results"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}{'+' * bool(changed)}"


def provenance_of_run(name: str, seed: int, profile: str) -> dict[str, Any]:
    """Return settings, steps, minutes and patients of a finished run, and how it differs from today's catalogue."""
    folder = experiments.run_folder(name, profile, seed)
    config, log = read_json(folder / "config.json"), read_log(folder)
    settings = config["settings"]
    rows = config["data"].get("patients", {})
    slices = [sum(row["count"] for row in ids[: settings["patients"]]) for ids in rows.values()]
    today = vars(training_settings(name, profile, seed).in_steps(max(slices, default=1)))
    other = [key for key in today if key in settings and settings[key] != today[key]]
    return {
        "cohort": TRAININGS[name].data(seed),
        "method": TRAININGS[name].method,
        "settings": settings,
        "steps": log[-1]["step"],
        "minutes": round(log[-1]["seconds"] / 60, 2),
        "patients": {domain: len(ids[: settings["patients"]]) for domain, ids in rows.items()},
        "trained_with": {key: config[key] for key in ("mr2ct", "torch") if key in config},
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        **({"differs_from_catalogue": other} if other else {}),
    }


# --- recording ---


def jobs(only: str = "") -> list[Job]:
    """Return all jobs in order, those whose name begins with `only`."""
    every = [(kind, name, seed) for kind, names, seeds in RECORDED for seed in seeds for name in names]
    return [job for job in every if job[1].startswith(only)]


def place(job: Job) -> tuple[str, str]:
    """Return the section of provenance.json and the key in it that say that a job is done."""
    kind, name, seed = job
    section = {"translator": "runs", "frames": "frames"}.get(kind, f"{kind}s")
    return section, f"{name}:{seed}" if seed else name


def do(job: Job, profile: str) -> Result:
    """Train and measure; returns {file: new rows} and the provenance."""
    kind, name, seed = job
    stamp = {"date": datetime.date.today().isoformat(), "processor": processor(), "commit": commit()}
    if kind == "frames":
        return measure_frames(name, profile), stamp
    if kind == "mean":
        return measure_mean(name, profile, SEEDS[:3]), stamp | {"seeds": SEEDS[:3]}
    if kind in ("translator", "spin"):
        cohort = TRAININGS[name].tested_on(seed)
        translator = finished_translator(name, profile, seed)
        run, about = (f"{name}_spin", stamp) if kind == "spin" else (name, provenance_of_run(name, seed, profile))
        return measure_translator(cohort, translator, profile, seed, run, spin=kind == "spin"), about
    return {"segmentation": measure_segmentation(kind, name, seed, profile)}, {
        "unet": dataclasses.asdict(PROFILES[profile].unet)
    } | stamp


def add(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Put rows into results/<profile>/<file>.csv, in the place of earlier rows of the same runs, seeds and cohorts."""
    for name, rows in tables.items():
        path = folder / f"{name}.csv"
        if path.is_file():
            old, same = pd.read_csv(path), ["run", "seed", "cohort"]
            again = old[same].astype(str).agg("|".join, axis=1).isin(rows[same].astype(str).agg("|".join, axis=1))
            rows = pd.concat([old[~again], rows])
        keys = [key for key in KEYS if key in rows]
        rows = rows[keys + [column for column in rows if column not in keys]].sort_values(keys, kind="stable")
        with atomic(path) as temporary:
            rows.to_csv(temporary, index=False, float_format="%.5g")


def keep(job: Job, profile: str, results: Path) -> None:
    """Keep what notebooks show of the full profile in half precision: translators, and the U-Net of one of them."""
    kind, name, seed = job
    if profile != "full" or seed != SEEDS[0]:
        return
    if kind == "translator" and name in SHOWN:
        translator = load_translator(experiments.run_folder(name, profile, seed))
        if translator.architecture.offset_layers == "per_channel" and name != DEFORMED:
            translator = without_offsets(translator)
        half(translator).save(results / "translators" / name)
    if kind == "unet" and name == "hip_many_gc":
        save_segmenter(half(experiments.segmenter(name, profile, seed)), results / "segmenters" / name)


def without_offsets(translator: Translator) -> Translator:
    """Return a copy without offset layers, for those who look at its undeformed pass alone: a fifth smaller."""
    architecture = dataclasses.replace(translator.architecture, offset_layers=None)
    plain = Translator(architecture, translator.preparation, translator.training_record)
    plain.load_state_dict({name: value for name, value in translator.state_dict().items() if ".offsets." not in name})
    plain.training_data = translator.training_data
    return plain


def half(model: Translator | Segmenter) -> Translator | Segmenter:
    """Return a copy with weights of half the size: 16 bits, of which a translation shows nothing."""
    model = copy.deepcopy(model)
    (model.network if isinstance(model, Segmenter) else model).half()
    return model


def record(
    profile: str,
    results: Path,
    budget: float | None = None,
    only: str = "",
    again: bool = False,
    workers: int | None = None,
) -> bool:
    """Do all jobs that are not recorded, within a budget in minutes; returns whether all are done.

    workers: so many translators are trained and measured side by side, in processes of their own; None: as many as the
    cores, or a GPU's memory, allow.
    """
    folder = results / profile
    notes = folder / "provenance.json"
    content = read_json(notes) if notes.is_file() else {}
    started = time.monotonic()
    pending = [job for job in jobs(only) if again or place(job)[1] not in content.get(place(job)[0], {})]
    if budget is not None:
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 60 * budget)
    try:
        for job, minutes, (tables, about) in outcomes(pending, profile, workers):
            section, key = place(job)
            add(tables, folder)
            keep(job, profile, results)  # before the note that says that the job is done
            counts = {name: plan.patients[profile] for name, plan in COHORTS.items()} | {"few": PROFILES[profile].few}
            content |= provenance_of_machine(profile) | {"patients": counts}
            content[section] = dict(sorted((content.get(section, {}) | {key: about}).items()))
            write_json(content, notes)
            print(log_line(job, tables, minutes), flush=True)
    except OutOfTime:
        print(f"stopped after {(time.monotonic() - started) / 60:.1f} minutes, the budget", flush=True)
    finally:
        if budget is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return report_missing(profile, results)


def outcomes(pending: list[Job], profile: str, workers: int | None) -> Iterator[tuple[Job, float, Result]]:
    """Yield (job, minutes, result) of those jobs that end well, neighbouring trainings at once; say why others fail."""
    trainings = [(experiments.run, name) for kind, name, _ in pending if kind == "translator"]
    workers = workers or experiments.jobs_at_once(trainings, profile)
    for several, group in groupby(pending, lambda job: job[0] == "translator" and workers > 1):
        if several:
            yield from _side_by_side(group, profile, workers)
        else:
            for job in group:
                yield from _if_well(job, *_timed(job, profile))


def _side_by_side(trainings: Iterable[Job], profile: str, workers: int) -> Iterator[tuple[Job, float, Result]]:
    """Yield as `outcomes` what several processes do at once."""
    with shared_gpu(), cores.pool(workers, max(1, cores.available() // workers)) as pool:
        numbers = {}
        for job in trainings:
            training = TRAININGS[job[1]]
            try:
                for data in (training.data(job[2]), *(f"{training.tested_on(job[2])}_{split}" for split in SPLITS)):
                    experiments.prepared(data, profile)  # here, so that no two workers make the same
            except InputError as error:
                yield from _if_well(job, 0.0, error)
                continue
            numbers[pool.submit(_timed, job, profile)] = job
            for ended in [future for future in numbers if future.done()]:
                yield from _if_well(numbers.pop(ended), *ended.result())
        for ended in as_completed(list(numbers)):
            yield from _if_well(numbers.pop(ended), *ended.result())


def _timed(job: Job, profile: str) -> tuple[float, Result | InputError]:
    """Do a job; returns its minutes, and its result or why there is none."""
    begun = time.monotonic()
    try:
        result: Result | InputError = do(job, profile)
    except InputError as error:  # the next job may go well
        result = error
    return (time.monotonic() - begun) / 60, result


def _if_well(job: Job, minutes: float, result: Result | InputError) -> Iterator[tuple[Job, float, Result]]:
    if isinstance(result, InputError):
        print(f"{' '.join(place(job))}: left out. {result}", flush=True)
    else:
        yield job, minutes, result


def _stop(*_: object) -> None:
    raise OutOfTime


def log_line(job: Job, tables: dict[str, pd.DataFrame], minutes: float) -> str:
    """Return one line on a job: when, what, how long, and its most telling means over test patients."""
    kind, name, seed = job
    table = next(iter(tables.values()))
    table = table[table.split == "test"]
    if kind == "frames":
        table = table[table.direction == "source_to_target"]
    by = "run" if kind == "frames" or "direction" not in table else "direction"
    measures = ["Dice", "HD95"] if "Dice" in table else ["MAE", "PSNR unit", "SSIM", "displacement"]
    means = table.groupby(by)[measures].mean().round(3).to_dict("index")
    clock = datetime.datetime.now().strftime("%H:%M")
    return f"{clock} {kind} {name} seed {seed}, {minutes:.1f} min: {means}"


def missing(profile: str, results: Path) -> list[str]:
    """Return the jobs that are not recorded, in order."""
    notes = results / profile / "provenance.json"
    content = read_json(notes) if notes.is_file() else {}
    return [f"{job[0]} {job[1]} seed {job[2]}" for job in jobs() if place(job)[1] not in content.get(place(job)[0], {})]


def report_missing(profile: str, results: Path) -> bool:
    """Name what is missing on screen and in missing.txt; returns whether nothing is."""
    lines = missing(profile, results)
    with atomic(results / profile / "missing.txt") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines) or "nothing\n", encoding="utf-8")
    print(f"{len(jobs()) - len(lines)} of {len(jobs())} recorded; missing: {', '.join(lines) or 'nothing'}", flush=True)
    return not lines


def main() -> None:
    """Read the arguments and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["runs", "missing", "tables"], default="runs")
    parser.add_argument("--profile", default="full", choices=["quick", "full", "paper"])
    parser.add_argument("--budget", type=float, help="minutes after which it stops, more than 0")
    parser.add_argument("--workers", type=int, help="translators at a time; by default as many as the machine holds")
    parser.add_argument("--only", default="", help="names that begin so, such as hip or head_distorted")
    parser.add_argument(
        "--again", action="store_true", help="measure anew what is recorded; finished runs stay trained"
    )
    arguments = parser.parse_args()
    if arguments.budget is not None and not arguments.budget > 0:
        parser.error(f"--budget {arguments.budget:g}: expected minutes above 0")
    if arguments.what == "runs":
        how = (arguments.budget, arguments.only, arguments.again, arguments.workers)
        record(arguments.profile, experiments.RESULTS, *how)
    if arguments.what == "missing":
        report_missing(arguments.profile, experiments.RESULTS)
    else:
        write_tables(experiments.RESULTS / arguments.profile)

