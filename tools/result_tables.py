"""The tables of results/<profile>/tables/, made from the values of each patient alone: same files, same bytes."""

from pathlib import Path

import pandas as pd

from mr2ct_lib.course.catalogue import CLAIMS
from mr2ct_lib.files import atomic
from mr2ct_lib.measures.statistics import mean_sd, weigh_claims

# measure -> digits in the tables
IMAGES = {
    "MAE": 2, "PSNR": 2, "MSE unit": 4, "PSNR unit": 2, "SSIM": 3, "SSIM whole": 3, "MI": 3, "displacement": 2,
    "shift rows": 2, "shift columns": 2, "q98.5": 3, "true q98.5": 3, "q99.5": 3, "true q99.5": 3,
}  # fmt: skip
AORTA = {"MSE aorta": 3, "PSNR aorta": 2, "SSIM aorta": 3, "SSIM whole aorta": 3}
TISSUES = {"mean error": 1, "MAE": 1, "median": 1, "true median": 1, "SD": 1, "true SD": 1}
STRUCTURES = {"Dice": 3, "HD95": 1, "mL": 1, "true mL": 1}
_OF_IMAGES = ["cohort", "split", "direction", "run"]
FILES = {
    "hip": (_OF_IMAGES, IMAGES | {"MSE unit": 0}),  # HU squared
    "abdomen": (_OF_IMAGES, IMAGES | {"MSE unit": 0} | AORTA),
    "head": (_OF_IMAGES, IMAGES),
    "tissues": (["cohort", "split", "run", "tissue"], TISSUES),
    "segmentation": (["split", "run", "structure"], STRUCTURES),
}


def seeds_table(records: pd.DataFrame, by: list[str], measures: dict[str, int]) -> pd.DataFrame:
    """Return mean ± SD over seeds of the means over patients, with the numbers of both, a row per group.

    Without a ± there is one seed. Measures that the records lack are left out, and so are structures in patients who do
    not have them; HD95 leaves out those that a run has missed, too.
    """
    if "true mL" in records:
        records = records[records["true mL"] > 0]
    measures = {name: digits for name, digits in measures.items() if name in records}
    per_seed = records.groupby([*by, "seed"])[list(measures)].mean().reset_index()
    groups = per_seed.groupby(by)
    table = pd.DataFrame({name: groups[name].agg(mean_sd, digits=digits) for name, digits in measures.items()})
    table["seeds"] = groups["seed"].nunique()
    table["patients"] = records.groupby(by)["patient"].nunique()
    return table.reset_index()


def claims_table(images: pd.DataFrame) -> pd.DataFrame:
    """Return every family of claims on test patients, tested over seeds and patients, Holm-corrected in its family."""
    test = images[images.split == "test"]
    parts = []
    for family, claims in CLAIMS.items():
        measured = test.reindex(columns=list(dict.fromkeys([*test, *(claim.measure for claim in claims)])))
        parts.append(weigh_claims(measured, claims).assign(family=family))
    table = pd.concat(parts)
    return table[["family", *(column for column in table if column != "family")]]


def write_tables(folder: Path) -> list[Path]:
    """Write tables/<file>.csv and tables/claims.csv of a results folder; returns the paths."""
    tables, images = {}, []
    for name, (by, measures) in FILES.items():
        path = folder / f"{name}.csv"
        if not path.is_file():
            continue
        records = pd.read_csv(path)
        tables[name] = seeds_table(records, by, measures)
        if by is _OF_IMAGES:
            images.append(records)
    if images:
        tables["claims"] = claims_table(pd.concat(images, ignore_index=True))
    paths = []
    for name, table in tables.items():
        paths.append(folder / "tables" / f"{name}.csv")
        with atomic(paths[-1]) as temporary:
            table.to_csv(temporary, index=False, float_format="%.4g", lineterminator="\n")
    return paths
