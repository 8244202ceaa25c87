"""The papers' tables, three numbers side by side: the paper's, that of long recorded runs, and that of short ones.

Rows are runs of `catalogue.TRAININGS`, the same with `spin` (see `Translator.translate`), the mean of several networks,
and baselines. Recorded values are those of results/<profile>/ (`experiments.recorded`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mr2ct_lib.course import experiments, papers
from mr2ct_lib.course.catalogue import CLAIMS, TRAININGS, known
from mr2ct_lib.files import InputError
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.measures import evaluation
from mr2ct_lib.measures.metrics import mutual_information, slicewise
from mr2ct_lib.measures.statistics import mean_sd, weigh_claims
from mr2ct_lib.methods.translator import DIRECTIONS, Translator
from mr2ct_lib.patients.abdomen import aorta_mask

Records = Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]  # {profile: rows of runs and their provenance}
CURVE = "curve fitted on test pairs"
BASELINES = {
    "histogram matching": "histogram matching",
    "mean training slice": "mean training slice",
    CURVE: "curve fitted on these pairs",
}
WAYS = {
    "hip": ("MR -> CT", "CT -> MR"),
    "head": ("PD -> T2", "T2 -> PD"),
    "head_distorted": ("PD -> T2", "T2 -> PD"),
    "head_t1": ("T1 -> T2", "T2 -> T1"),
    "abdomen": ("T2* -> CT", "CT -> T2*"),
}
HIPS = {
    "hip_few": "few, no GC",
    "hip_few_gc": "few, GC",
    "hip_many": "many, no GC",
    "hip_many_gc": "many, GC",
    "hip_many_gc_spin": "many, GC, spin",
    "hip_many_gc_mean": "many, GC, spin, 3 networks",
    "hip_many_gc_long": "many, GC, twice the steps",
    "hip_many_gc_long_spin": "many, GC, twice the steps, spin",
    "hip_many_gc_paper": "many, GC 0.3",
    "hip_many_signed_gc": "many, signed GC",
    "hip_supervised": "supervised",
} | BASELINES
SCANS = {"hip": "hip", "head": "head", "head_distorted": "distorted head", "head_t1": "T1 head", "abdomen": "abdomen"}
UNITS = {
    "MAE": "MAE / grey levels",
    "MI": "MI / nats",
    "PSNR unit": "PSNR / dB",
    "PSNR aorta": "PSNR in the aorta / dB",
}
# Columns of `papers.cyclegan_errors` and the runs that repeat them
HIASA = {
    "hip_few": ("20", "no GC"),
    "hip_few_gc": ("20", "GC"),
    "hip_many": (">300", "no GC"),
    "hip_many_gc": (">300", "GC"),
}


def shown(name: str, profile: str = "quick", seed: int = 7) -> Translator:
    """Return the recorded translator of a run; in the profile paper, whose slices it does not know, the reader's own.

    Raises InputError where none is recorded.
    """
    return experiments.translator(name, profile, seed) if profile == "paper" else experiments.recorded_translator(name)


def unpaired_information(name: str, network: Translator, data: PreparedSlices) -> pd.DataFrame:
    """Measure MI (nats) of CTs with the MR that a network makes of them; no truth is needed.

    Columns: run (`name`), patient, MI, the mean over every fourth slice. Hiasa et al., Fig. 4(a), has 20 CTs.
    """
    rows = []
    for patient, where in data.patients("target"):
        slices = np.asarray(data.target[where][::4])
        made = network.translate(slices, "target_to_source")
        information = slicewise(mutual_information, made, slices, limits=((-1, 1), (-1, 1)))
        rows.append({"run": name, "patient": patient, "MI": float(information.mean())})
    return pd.DataFrame(rows)


def in_aorta(synthetic: np.ndarray, data: PreparedSlices, direction: str) -> pd.DataFrame:
    """Measure errors inside the aorta as Wang et al. do in Table 3: columns patient, "MSE aorta", "PSNR aorta", ...

    The MSE is in squared SD of the patient's true slices (their images are z-scored), where pixels that the true scan
    does not cover count as black; SSIM windowed and by moments.
    """
    source, target = direction.split("_to_")
    inside = aorta_mask(np.asarray(getattr(data, f"labels_{source}")))
    table = evaluation.measure(synthetic, data, direction, inside)
    truth = evaluation.truth_of(data, direction)
    spread = [data.windows[target].from_network(truth[where]).std() for _, where in data.patients("source")]
    table["MSE unit"] /= np.square(spread)
    names = {"MSE unit": "MSE aorta", "PSNR unit": "PSNR aorta", "SSIM": "SSIM aorta", "SSIM whole": "SSIM whole aorta"}
    return table[["patient", *names]].rename(columns=names)


def tissue_columns(tissues: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return MAE per tissue as columns "MAE muscle", "MAE cortical_bone", ..., a row for each of `keys`."""
    wide = tissues.pivot_table(index=keys, columns="tissue", values="MAE")
    return wide.add_prefix("MAE ").rename_axis(columns=None).reset_index()


# --- side by side ---


def beside(
    titles: Mapping[str, str],
    measures: Mapping[str, int],
    records: Records,
    paper: Mapping[tuple[str, str], float] | None = None,
) -> pd.DataFrame:
    """Return a table of texts, a row per run: the paper's value, and the recorded one of each profile.

    titles: {run: name of the row}; measures: {column: digits}; records: of one cohort and direction, see `part`; paper:
    {(column, run): printed value}. Recorded is mean ± SD over seeds of the means over patients, without ± for one seed;
    what stands behind it is in the last columns. "-" is not recorded, not printed or not measured.
    Raises InputError without measures.
    """
    if not measures:
        raise InputError("measures: none; expected at least one column and its digits")
    paper, columns = paper or {}, {}
    for measure, digits in measures.items():
        printed = {run: f"{paper[measure, run]:.{digits}f}" for run in titles if (measure, run) in paper}
        if printed:
            columns[measure, "paper"] = pd.Series(printed)
        for profile, (table, _) in records.items():
            table = table.reindex(columns=["run", "seed", measure])
            per_seed = table.groupby(["run", "seed"])[measure].mean()
            columns[measure, profile] = per_seed.groupby("run").agg(mean_sd, digits=digits)
    columns = {(name.removeprefix("MAE ").replace("_", " "), whose): texts for (name, whose), texts in columns.items()}
    for profile, (table, provenance) in records.items():
        numbers = table.groupby("run")[["seed", "patient"]].nunique()
        columns["seeds / patients / steps", profile] = pd.Series(
            {run: f"{n} / {patients} / {steps_of(provenance, run)}" for run, n, patients in numbers.itertuples()},
            dtype=object,
        )
    return pd.DataFrame(columns).reindex(list(titles)).astype(object).fillna("-").rename(index=titles).rename_axis(None)


def part(records: Records, cohort: str, direction: str = "source_to_target") -> Records:
    """Return the records of one cohort and direction."""
    return {
        profile: (table[(table.cohort == cohort) & (table.direction == direction)], provenance)
        for profile, (table, provenance) in records.items()
    }


def steps_of(provenance: Mapping[str, Any], run: str) -> str:
    """Return the training steps of the recorded runs of a name; "-" when there are none."""
    runs = provenance.get("runs", {})
    name = run.removesuffix("_spin").removesuffix("_mean")
    steps = sorted({about["steps"] for key, about in runs.items() if key.rpartition(":")[0] == name})
    return " or ".join(map(str, steps)) or "-"


def beside_hiasa(measures: Mapping[str, int], records: Records) -> pd.DataFrame:
    """Return Table 1 of Hiasa et al. with more rows, as `beside`: all HIPS, the paper's means of MAE and PSNR."""
    printed = papers.cyclegan_errors()
    paper = {
        (measure, run): printed.loc[(measure, "mean"), column]
        for measure in {"MAE", "PSNR"} & set(measures)
        for run, column in HIASA.items()
    }
    return beside(HIPS, measures, records, paper)


def model_of(run: str, cohort: str) -> str:
    """Return what to call a run of a cohort in a table.

    >>> model_of("head_distorted_dicyclegan_no_align", "head_distorted"), model_of("abdomen_cyclegan", "abdomen")
    ('DicycleGAN, no align', 'CycleGAN')
    """
    method, *change = run.removeprefix(f"{cohort}_").split("_")
    name = {"cyclegan": "CycleGAN", "dicyclegan": "DicycleGAN", "field": "one smooth field"}.get(method, method)
    return ", ".join(filter(None, (name, " ".join(change))))


def called(run: str, cohort: str) -> str:
    """Return what to call a run or a baseline in a table, as `HIPS` and `model_of`.

    >>> called("hip_many_gc", "hip"), called("head_field", "head")
    ('many, GC', 'one smooth field')
    """
    return HIPS.get(run) or model_of(run, cohort)


def beside_wang(condition: str, cohort: str, records: Records) -> pd.DataFrame:
    """Return one of Tables 1 to 3 of Wang et al. with both directions, as `beside`.

    condition: "undeformed", "deformed" or "in the aorta", as in `papers.dicyclegan_errors`; cohort: "head",
    "head_distorted" or "abdomen", or "head_t1", which the paper does not have. "SSIM by moments" is the paper's
    definition; of the windowed "SSIM" it says nothing.
    """
    ending = " aorta" if condition == "in the aorta" else ""
    names = {"MSE": "MSE" if ending else "MSE unit", "PSNR": "PSNR" if ending else "PSNR unit", "SSIM": "SSIM whole"}
    columns = {metric: name + ending for metric, name in names.items()}
    models = {"CycleGAN": f"{cohort}_cyclegan", "DicycleGAN": f"{cohort}_dicyclegan"}
    of_cohort = {run for table, _ in records.values() for run in table[table.cohort == cohort].run}
    runs = [run for name in TRAININGS for run in (name, f"{name}_spin")]
    others = [run for run in runs if run in of_cohort and not run.endswith("_supervised")]
    titles = {run: model_of(run, cohort) for run in dict.fromkeys([*models.values(), *others])}
    titles |= {f"{cohort}_supervised": "supervised"} | BASELINES
    digits = {columns["MSE"]: 3, columns["PSNR"]: 2, columns["SSIM"]: 3, f"SSIM{ending}": 3}
    tables, of_paper = {}, papers.dicyclegan_errors()
    for way, direction in zip(WAYS[cohort], DIRECTIONS, strict=True):
        printed = of_paper.loc[(way, condition)] if (way, condition) in of_paper.index else {}
        paper = {(columns[metric], models[model]): value for (metric, model), value in printed.items()}
        tables[way] = beside(titles, digits, part(records, cohort, direction), paper)
    shown = dict(zip(digits, ("MSE / SD²", "PSNR / dB", "SSIM by moments", "SSIM"), strict=True))
    return pd.concat(tables).rename(columns=shown, level=0)


def gains(records: Records) -> pd.DataFrame:
    """Return what DicycleGAN gains over CycleGAN: dB of PSNR and the ratio of MSE, for the paper and each profile.

    A row per condition and direction; NaN where one of the two runs is missing.
    """
    printed = papers.dicyclegan_errors()
    rows: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for cohort, condition in (("head", "undeformed"), ("head_distorted", "deformed")):
        for direction, way in zip(DIRECTIONS, WAYS[cohort], strict=True):
            row = rows[condition, way] = {}
            for whose, (table, _) in ({"paper": (None, None)} | dict(records)).items():
                if table is None:
                    means = printed.loc[(way, condition)].unstack("model")
                    one, two = means["CycleGAN"], means["DicycleGAN"]
                else:
                    rows_of = table[(table.cohort == cohort) & (table.direction == direction)]
                    means = rows_of.groupby("run")[["PSNR unit", "MSE unit"]].mean()
                    means = means.rename(columns=lambda name: name.removesuffix(" unit"))
                    runs = [f"{cohort}_cyclegan", f"{cohort}_dicyclegan"]
                    one, two = (row for _, row in means.reindex(runs).iterrows())
                row["PSNR / dB", whose] = two["PSNR"] - one["PSNR"]
                row["MSE ratio", whose] = one["MSE"] / two["MSE"]
    order = [(measure, whose) for measure in ("PSNR / dB", "MSE ratio") for whose in ("paper", *records)]
    return pd.DataFrame.from_dict(rows, orient="index")[order].round(2)


# --- claims ---


def claims(records: pd.DataFrame, family: str) -> pd.DataFrame:
    """Return a family of `catalogue.CLAIMS`, tested over seeds and patients, as a table of texts.

    Claims whose runs or measures are not recorded stay in it, as "n too small". InputError for an unknown family.
    """
    family_claims = known(CLAIMS, family)
    missing = [claim.measure for claim in family_claims if claim.measure not in records]
    table = weigh_claims(records.reindex(columns=[*records, *dict.fromkeys(missing)]), family_claims)

    def with_interval(name: str, low: str, high: str) -> list[str]:
        rows = table[[name, low, high]].itertuples(index=False)
        return ["-" if np.isnan(v) else f"{v:.3g}" + (f" ({a:.3g} to {b:.3g})" if a == a else "") for v, a, b in rows]

    ways = [WAYS[cohort][DIRECTIONS.index(way)] for cohort, way in zip(table.cohort, table.direction, strict=True)]
    return pd.DataFrame(
        {
            "better": [called(run, cohort) for run, cohort in zip(table.better, table.cohort, strict=True)],
            "than": [called(run, cohort) for run, cohort in zip(table.against, table.cohort, strict=True)],
            "scans": [f"{SCANS[cohort]}, {way}" for cohort, way in zip(table.cohort, ways, strict=True)],
            "measure": table["measure"].map(UNITS),
            "difference": with_interval("difference", "low", "high"),
            "effect": with_interval("effect", "effect low", "effect high"),
            "p (Holm)": table["p Holm"].map(lambda p: "-" if np.isnan(p) else f"{p:.2g}"),
            "seeds": table["seeds"],
            "patients": table["patients"],
            "verdict": table["verdict"],
        }
    )
