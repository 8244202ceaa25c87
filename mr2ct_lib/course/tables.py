"""The papers' tables, three numbers side by side: the paper's, the recorded one, and what the reader has just measured.

Rows are runs of `catalogue.TRAININGS` and frames, opponents without a network. Recorded values are those of
results/<profile>/ (`experiments.recorded`), measured ones come from `measured`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mr2ct_lib.course import experiments, papers
from mr2ct_lib.course.catalogue import CLAIMS, TRAININGS, known
from mr2ct_lib.files import InputError
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.measures import evaluation
from mr2ct_lib.measures.baselines import fitted_curve
from mr2ct_lib.measures.metrics import mutual_information, slicewise
from mr2ct_lib.measures.statistics import mean_sd, weigh_claims
from mr2ct_lib.methods.translator import DIRECTIONS, Translator
from mr2ct_lib.patients.abdomen import aorta_mask
from mr2ct_lib.patients.tissues import tissue_of

CURVE = "curve fitted on test pairs"
FRAMES = {
    "histogram matching": "histogram matching",
    "mean training slice": "mean training slice",
    CURVE: "curve fitted on these pairs",
}
WAYS = {
    "hip": ("MR -> CT", "CT -> MR"),
    "head": ("PD -> T2", "T2 -> PD"),
    "head_distorted": ("PD -> T2", "T2 -> PD"),
    "abdomen": ("T2* -> CT", "CT -> T2*"),
}
HIPS = {
    "hip_few": "few, no GC",
    "hip_few_gc": "few, GC",
    "hip_many": "many, no GC",
    "hip_many_gc": "many, GC",
    "hip_many_gc_paper": "many, GC 0.3",
    "hip_many_signed_gc": "many, signed GC",
    "hip_supervised": "supervised",
} | FRAMES
# Columns of `papers.cyclegan_errors` and the runs that repeat them
HIASA = {
    "hip_few": ("20", "no GC"),
    "hip_few_gc": ("20", "GC"),
    "hip_many": (">300", "no GC"),
    "hip_many_gc": (">300", "GC"),
}


def measured(
    cohort: str, names: list[str], profile: str = "quick", seed: int = 7, root: Path | None = None
) -> pd.DataFrame:
    """Measure runs and frames on the profile's test patients, a row per run, direction and patient.

    Runs that are missing are trained. Columns: run, seed, cohort, direction, those of `evaluation.measure`, MI (nats,
    of a synthesis and its own source, the mean over slices); of heads those of `evaluation.measure_contrast`; of
    abdomens those of `in_aorta`; of hips "MAE cortical_bone" and the like in HU (source to target only).
    """
    training, test = (experiments.prepared(name, profile, root) for name in (cohort, f"{cohort}_test"))
    translators = {name: experiments.translator(name, profile, seed, root) for name in names}
    rows = []
    for direction in DIRECTIONS:
        source = np.asarray(getattr(test, direction.split("_to_")[0]))
        images = {name: network.translate(source, direction) for name, network in translators.items()}
        images |= evaluation.baselines(training, test, direction)
        images[CURVE] = fitted_curve(source, truth_of(test, direction), source, test.valid)
        for name, synthetic in images.items():
            table = evaluation.measure(synthetic, test, direction)
            information = slicewise(mutual_information, synthetic, source, limits=((-1, 1), (-1, 1)))
            table["MI"] = [float(information[where].mean()) for _, where in test.patients("source")]
            if test.meta["anatomy"] == "head":
                table = table.merge(evaluation.measure_contrast(synthetic, test, direction), on="patient")
            if test.meta["anatomy"] == "abdomen":
                table = table.merge(in_aorta(synthetic, test, direction), on="patient")
            if test.meta["anatomy"] == "hip" and direction == "source_to_target":
                tissues = evaluation.measure_tissues(synthetic, test, tissue_labels(test))
                table = table.merge(tissue_columns(tissues, ["patient"]), on="patient")
            rows.append(table.assign(run=name, seed=seed, cohort=cohort, direction=direction))
    return pd.concat(rows, ignore_index=True)


def unpaired_information(
    names: list[str], profile: str = "quick", seed: int = 7, root: Path | None = None, every: int = 4
) -> pd.DataFrame:
    """Measure MI (nats) of the labelled CTs, of other people than the MRs, with the MR that each run makes of them.

    Columns: run, seed, patient, MI, the mean over every fourth slice. Hiasa et al., Fig. 4(a), has 20 CTs, too.
    """
    data = experiments.prepared("hip_labelled", profile, root)
    rows = []
    for name in names:
        network = experiments.translator(name, profile, seed, root)
        for patient, where in data.patients("target"):
            slices = np.asarray(data.target[where][::every])
            made = network.translate(slices, "target_to_source")
            information = slicewise(mutual_information, made, slices, limits=((-1, 1), (-1, 1)))
            rows.append({"run": name, "seed": seed, "patient": patient, "MI": float(information.mean())})
    return pd.DataFrame(rows)


def shown(name: str, profile: str = "quick", seed: int = 7) -> tuple[Translator, str]:
    """Return the recorded translator of a run and "recorded"; where none is recorded, the reader's own and "yours"."""
    try:
        return experiments.recorded_translator(name), "recorded"
    except InputError:
        return experiments.translator(name, profile, seed), "yours"


def truth_of(data: PreparedSlices, direction: str) -> np.ndarray:
    """Return the true slices (N, H, W) of a direction, in the source's shape where the scanners see different ones."""
    truth = getattr(data, f"truth_{direction}")
    return np.asarray(getattr(data, direction.split("_to_")[1]) if truth is None else truth)


def in_aorta(synthetic: np.ndarray, data: PreparedSlices, direction: str) -> pd.DataFrame:
    """Measure errors inside the aorta as Wang et al. do in Table 3: columns patient, "MSE aorta", "PSNR aorta", ...

    The MSE is in squared SD of the patient's true scan (their images are z-scored); SSIM windowed and by moments.
    """
    source, target = direction.split("_to_")
    inside = aorta_mask(np.asarray(getattr(data, f"labels_{source}")))
    table = evaluation.measure(synthetic, data, direction, inside)
    truth = truth_of(data, direction)
    spread = [data.windows[target].from_network(truth[where]).std() for _, where in data.patients("source")]
    table["MSE unit"] /= np.square(spread)
    names = {"MSE unit": "MSE aorta", "PSNR unit": "PSNR aorta", "SSIM": "SSIM aorta", "SSIM whole": "SSIM whole aorta"}
    return table[["patient", *names]].rename(columns=names)


def tissue_labels(data: PreparedSlices) -> dict[str, list[int]]:
    """Return the label values of each tissue in prepared slices of virtual patients."""
    values: dict[str, list[int]] = {}
    for value, name in data.meta["label_names"].items():
        values.setdefault(tissue_of(name).name, []).append(int(value))
    return values


def tissue_columns(tissues: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return MAE per tissue as columns "MAE muscle", "MAE cortical_bone", ..., a row for each of `keys`."""
    wide = tissues.pivot_table(index=keys, columns="tissue", values="MAE")
    return wide.add_prefix("MAE ").rename_axis(columns=None).reset_index()


# --- side by side ---


def beside(
    titles: Mapping[str, str],
    measures: Mapping[str, int],
    recorded: pd.DataFrame,
    provenance: Mapping[str, Any],
    yours: pd.DataFrame,
    paper: Mapping[tuple[str, str], float] | None = None,
) -> pd.DataFrame:
    """Return a table of texts, a row per run: the paper's value, the recorded one, the reader's own.

    titles: {run: name of the row}; measures: {column: digits}; paper: {(column, run): printed value}. recorded, yours:
    one row per run, seed and patient, of one cohort and direction. "recorded" is mean ± SD over seeds of the means over
    patients, without ± for one seed; the seeds, patients and steps behind it stand in the last columns. "-" is not
    recorded, not printed or not measured. Raises InputError without measures.
    """
    if not measures:
        raise InputError("measures: none; expected at least one column and its digits")
    paper, columns = paper or {}, {}
    for measure, digits in measures.items():
        printed = {run: f"{paper[measure, run]:.{digits}f}" for run in titles if (measure, run) in paper}
        if printed:
            columns[measure, "paper"] = pd.Series(printed)
        for whose, table in (("recorded", recorded), ("yours", yours)):
            table = table.reindex(columns=["run", "seed", measure])
            per_seed = table.groupby(["run", "seed"])[measure].mean()
            columns[measure, whose] = per_seed.groupby("run").agg(mean_sd, digits=digits)
    runs = recorded.groupby("run")
    columns = {(name.removeprefix("MAE ").replace("_", " "), whose): texts for (name, whose), texts in columns.items()}
    columns["recorded", "seeds"] = runs["seed"].nunique().astype(str)
    columns["recorded", "patients"] = runs["patient"].nunique().astype(str)
    columns["recorded", "steps"] = pd.Series({run: steps_of(provenance, run) for run in titles})
    return pd.DataFrame(columns).reindex(list(titles)).astype(object).fillna("-").rename(index=titles).rename_axis(None)


def steps_of(provenance: Mapping[str, Any], run: str) -> str:
    """Return the training steps of the recorded runs of a name; "-" when there are none."""
    runs = provenance.get("runs", {})
    steps = sorted({about["steps"] for key, about in runs.items() if key.rpartition(":")[0] == run})
    return " or ".join(map(str, steps)) or "-"


def beside_hiasa(
    measures: Mapping[str, int], recorded: pd.DataFrame, provenance: Mapping[str, Any], yours: pd.DataFrame
) -> pd.DataFrame:
    """Return Table 1 of Hiasa et al. with more rows, as `beside`: all HIPS, the paper's means of MAE and PSNR."""
    printed = papers.cyclegan_errors()
    paper = {
        (measure, run): printed.loc[(measure, "mean"), column]
        for measure in {"MAE", "PSNR"} & set(measures)
        for run, column in HIASA.items()
    }
    return beside(HIPS, measures, recorded, provenance, yours, paper)


def model_of(run: str, cohort: str) -> str:
    """Return what to call a run of a cohort in a table.

    >>> model_of("head_distorted_dicyclegan_no_align", "head_distorted"), model_of("abdomen_cyclegan", "abdomen")
    ('DicycleGAN, no align', 'CycleGAN')
    """
    method, *change = run.removeprefix(f"{cohort}_").split("_")
    name = {"cyclegan": "CycleGAN", "dicyclegan": "DicycleGAN", "field": "one smooth field"}.get(method, method)
    return ", ".join(filter(None, (name, " ".join(change))))


def beside_wang(
    condition: str, cohort: str, recorded: pd.DataFrame, provenance: Mapping[str, Any], yours: pd.DataFrame
) -> pd.DataFrame:
    """Return one of Tables 1 to 3 of Wang et al. with both directions, as `beside`.

    condition: "undeformed", "deformed" or "in the aorta", as in `papers.dicyclegan_errors`; cohort: "head",
    "head_distorted" or "abdomen". "SSIM by moments" is the paper's definition; of the windowed "SSIM" it says nothing.
    """
    ending = " aorta" if condition == "in the aorta" else ""
    names = {"MSE": "MSE" if ending else "MSE unit", "PSNR": "PSNR" if ending else "PSNR unit", "SSIM": "SSIM whole"}
    columns = {metric: name + ending for metric, name in names.items()}
    models = {"CycleGAN": f"{cohort}_cyclegan", "DicycleGAN": f"{cohort}_dicyclegan"}
    of_cohort = {*recorded[recorded.cohort == cohort].run, *yours[yours.cohort == cohort].run}
    others = [run for run in TRAININGS if run in of_cohort and not run.endswith("_supervised")]
    titles = {run: model_of(run, cohort) for run in dict.fromkeys([*models.values(), *others])}
    titles |= {f"{cohort}_supervised": "supervised"} | FRAMES
    digits = {columns["MSE"]: 3, columns["PSNR"]: 2, columns["SSIM"]: 3, f"SSIM{ending}": 3}
    tables = {}
    for way, direction in zip(WAYS[cohort], DIRECTIONS, strict=True):
        printed = papers.dicyclegan_errors().loc[(way, condition)]
        paper = {(columns[metric], models[model]): value for (metric, model), value in printed.items()}
        parts = [table[(table.cohort == cohort) & (table.direction == direction)] for table in (recorded, yours)]
        tables[way] = beside(titles, digits, parts[0], provenance, parts[1], paper)
    shown = dict(zip(digits, ("MSE / SD²", "PSNR / dB", "SSIM by moments", "SSIM"), strict=True))
    return pd.concat(tables).rename(columns=shown, level=0)


def gains(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return what DicycleGAN gains over CycleGAN: dB of PSNR and the ratio of MSE, for each table and the paper.

    tables: {whose: rows of runs}. A row per condition and direction; NaN where one of the two runs is missing.
    """
    printed = papers.dicyclegan_errors()
    rows: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for cohort, condition in (("head", "undeformed"), ("head_distorted", "deformed")):
        for direction, way in zip(DIRECTIONS, WAYS[cohort], strict=True):
            row = rows[condition, way] = {}
            for whose, table in ({"paper": None} | dict(tables)).items():
                if table is None:
                    means = printed.loc[(way, condition)].unstack("model")
                    one, two = means["CycleGAN"], means["DicycleGAN"]
                else:
                    part = table[(table.cohort == cohort) & (table.direction == direction)]
                    means = part.groupby("run")[["PSNR unit", "MSE unit"]].mean()
                    means = means.rename(columns=lambda name: name.removesuffix(" unit"))
                    runs = [f"{cohort}_cyclegan", f"{cohort}_dicyclegan"]
                    one, two = (row for _, row in means.reindex(runs).iterrows())
                row["PSNR / dB", whose] = two["PSNR"] - one["PSNR"]
                row["MSE ratio", whose] = one["MSE"] / two["MSE"]
    order = [(measure, whose) for measure in ("PSNR / dB", "MSE ratio") for whose in ("paper", *tables)]
    return pd.DataFrame.from_dict(rows, orient="index")[order].round(2)


# --- claims ---


def claims(records: pd.DataFrame, family: str, alpha: float = 0.05) -> pd.DataFrame:
    """Return a family of `catalogue.CLAIMS`, tested over seeds and patients, as a table of texts.

    Claims whose runs or measures are not recorded stay in it, as "n too small". InputError for an unknown family.
    """
    family_claims = known(CLAIMS, family)
    missing = [claim.measure for claim in family_claims if claim.measure not in records]
    table = weigh_claims(records.reindex(columns=[*records, *dict.fromkeys(missing)]), family_claims, alpha)

    def with_interval(name: str, low: str, high: str) -> list[str]:
        rows = table[[name, low, high]].itertuples(index=False)
        return ["-" if np.isnan(v) else f"{v:.3g}" + (f" ({a:.3g} to {b:.3g})" if a == a else "") for v, a, b in rows]

    ways = [WAYS[cohort][DIRECTIONS.index(way)] for cohort, way in zip(table.cohort, table.direction, strict=True)]
    return pd.DataFrame(
        {
            "better": table["better"],
            "than": table["against"],
            "direction": ways,
            "measure": table["measure"],
            "difference": with_interval("difference", "low", "high"),
            "effect": with_interval("effect", "effect low", "effect high"),
            "p (Holm)": table["p Holm"].map(lambda p: "-" if np.isnan(p) else f"{p:.2g}"),
            "seeds": table["seeds"],
            "patients": table["patients"],
            "verdict": table["verdict"],
        }
    )
