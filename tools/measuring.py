"""What `tools.record` measures: translators, baselines and U-Nets, on patients that none has seen."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from mr2ct_lib.course import experiments
from mr2ct_lib.course.catalogue import SEEDS, TRAININGS, cohort_plan
from mr2ct_lib.course.tables import in_aorta
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.measures import evaluation
from mr2ct_lib.measures.baselines import fitted_curve
from mr2ct_lib.measures.metrics import mutual_information, slicewise
from mr2ct_lib.methods.segmentation import predict
from mr2ct_lib.methods.translator import DIRECTIONS, Translator, load_translator
from mr2ct_lib.patients.tissues import tissue_of

Translate = Callable[[PreparedSlices, str], np.ndarray]  # (test set, direction) -> its synthetic slices (N, H, W)
SPLITS = ("test", "validation")
TISSUES = (
    "muscle",
    "fat",
    "trabecular_bone",
    "cortical_bone",
    "cartilage",
    "gas",
    "blood",
    "thrombus",
    "liver",
    "kidney",
)


def measure_images(cohort: str, translate: Translate, profile: str, seed: int, run: str) -> dict[str, pd.DataFrame]:
    """Measure both directions on test and validation patients: {anatomy: errors, "tissues": tissues}.

    "MI": mutual information in nats of a synthesis and its source, the mean over slices (Hiasa et al., Fig. 4(a)).
    """
    named = cohort.split("_people")[0]
    anatomy = cohort_plan(f"{cohort}_test").arguments["anatomy"]
    errors, tissue_rows = [], []
    for split in SPLITS:
        data = experiments.prepared(f"{cohort}_{split}", profile)
        for direction in DIRECTIONS:
            synthetic = translate(data, direction)
            keys = {"run": run, "seed": seed, "cohort": named, "split": split, "direction": direction}
            table = evaluation.measure(synthetic, data, direction)
            table = table.merge(evaluation.measure_contrast(synthetic, data, direction), on="patient")
            source = np.asarray(getattr(data, direction.split("_to_")[0]))
            information = slicewise(mutual_information, synthetic, source, limits=((-1, 1), (-1, 1)))
            if anatomy == "abdomen":
                table = table.merge(in_aorta(synthetic, data, direction), on="patient")
            table["MI"] = [float(information[where].mean()) for _, where in data.patients("source")]
            errors.append(table.assign(**keys))
            if not anatomy.startswith("head") and direction == "source_to_target":
                tissue_rows.append(evaluation.measure_tissues(synthetic, data, tissues(data)).assign(**keys))
    return {anatomy.split("_")[0]: pd.concat(errors)} | ({"tissues": pd.concat(tissue_rows)} if tissue_rows else {})


def measure_translator(
    cohort: str, translator: Translator, profile: str, seed: int, run: str, spin: bool = False
) -> dict[str, pd.DataFrame]:
    """Measure a translator's undeformed pass; spin: see `Translator.translate`."""

    def translate(data: PreparedSlices, direction: str) -> np.ndarray:
        return translator.translate(np.asarray(getattr(data, direction.split("_to_")[0])), direction, spin=spin)

    return measure_images(cohort, translate, profile, seed, run)


def measure_frames(cohort: str, profile: str) -> dict[str, pd.DataFrame]:
    """Measure what needs no network: two baselines, and pixelwise curves fitted on true pairs of either split."""
    training = experiments.prepared(cohort, profile)

    def baseline(name: str) -> Translate:
        return lambda data, direction: evaluation.baselines(training, data, direction)[name]

    def curve(split: str) -> Translate:
        pairs = experiments.prepared(f"{cohort}_{split}", profile)

        def translate(data: PreparedSlices, direction: str) -> np.ndarray:
            source = direction.split("_to_")[0]
            truth = evaluation.truth_of(pairs, direction)
            return fitted_curve(getattr(pairs, source), truth, getattr(data, source), pairs.valid)

        return translate

    frames = {name: baseline(name) for name in ("histogram matching", "mean training slice")}
    frames |= {f"curve fitted on {split} pairs": curve(split) for split in SPLITS}
    parts = [measure_images(cohort, translate, profile, 0, name) for name, translate in frames.items()]
    return {name: pd.concat([part[name] for part in parts]) for name in parts[0]}


def measure_mean(name: str, profile: str, seeds: Sequence[int]) -> dict[str, pd.DataFrame]:
    """Measure the mean image of the networks of several seeds, with `spin`: what one invents, the others seldom repeat.
    """
    networks = [finished_translator(name, profile, seed) for seed in seeds]

    def translate(data: PreparedSlices, direction: str) -> np.ndarray:
        source = np.asarray(getattr(data, direction.split("_to_")[0]))
        return np.mean([one.translate(source, direction, spin=True) for one in networks], axis=0, dtype=np.float32)

    return measure_images(TRAININGS[name].tested_on(seeds[0]), translate, profile, 0, f"{name}_mean")


def tissues(data: PreparedSlices) -> dict[str, list[int]]:
    """Return the label values of each of TISSUES in prepared slices of virtual patients."""
    values: dict[str, list[int]] = {}
    for value, name in data.meta["label_names"].items():
        if (tissue := tissue_of(name).name) in TISSUES:
            values.setdefault(tissue, []).append(int(value))
    return values


def finished_translator(name: str, profile: str, seed: int) -> Translator:
    """Return the translator of a run, trained or resumed now if need be; a finished run is taken as it is."""
    folder = experiments.run_folder(name, profile, seed)
    if not (folder / "translator" / "translator.json").is_file():
        experiments.run(name, profile, seed)
    translator = load_translator(folder)
    return translator.cuda() if torch.cuda.device_count() else translator


def measure_segmentation(kind: str, name: str, seed: int, profile: str) -> pd.DataFrame:
    """Measure a U-Net on the test MRs: a run's own ("unet"), a comparison's, or that on CT alone ("ct_unet")."""
    test = experiments.prepared("hip_test", profile)
    if kind == "ct_unet":
        synthetic = finished_translator(name, profile, seed).translate(np.asarray(test.source))
        prediction = predict(experiments.segmenter("ct_alone", profile, SEEDS[0]), synthetic[:, None])
    elif name == "mr_only":
        prediction = experiments.mr_only_prediction(profile, seed)
    else:
        prediction = experiments.segment_test(name, profile, seed)
    truth, names = experiments.structures(np.asarray(test.labels_source), test)
    run = f"{name}, U-Net on CT alone" if kind == "ct_unet" else name
    table = evaluation.measure_labels(prediction, truth, names, test)
    return table.assign(run=run, seed=seed, cohort="hip", split="test")
