"""The experiments of both papers by name: which patients, which method, which settings differ, how long.

Only data; `experiments` does the work. All numbers of patients are here, and all differences between compared runs.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from mr2ct_lib.files import InputError
from mr2ct_lib.measures.statistics import Claim
from mr2ct_lib.methods.settings import PROFILES, Settings, make_settings

# Whose scans a profile uses. Quick and full share cohorts and prepared slices, in runs/full/, so that a recorded
# translator can be applied to what the reader has just prepared.
SCANS = {"quick": "full", "full": "full", "paper": "paper"}


@dataclass(frozen=True)
class CohortPlan:
    """A cohort of virtual patients: the arguments of `make_cohort` and how many patients each profile takes."""

    arguments: dict[str, Any]
    patients: dict[str, int | tuple[int, int]]  # per domain, or (source, target)


def _cohort(anatomy: str, seed: int, patients: int | tuple[int, int], quick: int | None = None, **arguments: Any):
    """A cohort with `patients` in full and paper, the papers' own number, and `quick` (by default as many) in quick."""
    counts = {"quick": patients if quick is None else quick, "full": patients, "paper": patients}
    return CohortPlan({"anatomy": anatomy, "seed": seed, **arguments}, counts)


_PAIRED, _DISTORTED = {"paired": True}, {"distort_target": True}
# Training cohorts have seed 1, test cohorts 2, labelled ones 3, validation cohorts 4: other people in each.
# Weights, steps and rates are chosen on validation patients; test patients are for measuring only.
COHORTS: dict[str, CohortPlan] = {
    "hip": _cohort("hip", 1, (302, 613), quick=60),
    "hip_test": _cohort("hip", 2, 10, **_PAIRED),
    "hip_whole": _cohort("hip", 2, 1, **_PAIRED, whole_ct=True),  # a test patient, for teaching
    "hip_labelled": _cohort("hip", 3, 20),
    "hip_validation": _cohort("hip", 4, 5, **_PAIRED),
    "head": _cohort("head", 1, 38),
    "head_test": _cohort("head", 2, 28, quick=8, **_PAIRED),
    "head_validation": _cohort("head", 4, 5, **_PAIRED),
    "head_distorted": _cohort("head", 1, 38, **_DISTORTED),
    "head_distorted_test": _cohort("head", 2, 28, quick=8, **_PAIRED, **_DISTORTED),
    "head_distorted_validation": _cohort("head", 4, 5, **_PAIRED, **_DISTORTED),
    # T1 in place of PD: T2 is nearly its negative, so that no rising curve makes one from the other
    "head_t1": _cohort("head_t1", 1, 38, **_DISTORTED),
    "head_t1_test": _cohort("head_t1", 2, 28, quick=2, **_PAIRED, **_DISTORTED),  # in quick for a picture
    "head_t1_validation": _cohort("head_t1", 4, 5, **_PAIRED, **_DISTORTED),
    "abdomen": _cohort("abdomen", 1, 40),
    "abdomen_test": _cohort("abdomen", 2, 20, quick=8, **_PAIRED),
    "abdomen_validation": _cohort("abdomen", 4, 5, **_PAIRED),
    # Pairs to train a supervised generator on: the bound from above that no unpaired method can be expected to pass
    "hip_paired": _cohort("hip", 5, 160, quick=20, **_PAIRED),
    "head_paired": _cohort("head", 5, 38, **_PAIRED),
    "head_distorted_paired": _cohort("head", 5, 38, **_PAIRED, **_DISTORTED),
    "head_t1_paired": _cohort("head_t1", 5, 38, **_PAIRED, **_DISTORTED),
    "abdomen_paired": _cohort("abdomen", 5, 40, **_PAIRED),
}


@dataclass(frozen=True)
class Training:
    """A training run: its cohort, its method, and the settings that differ from the method's in the profile.

    method: "cyclegan", "dicyclegan", or "supervised", the same generators on pairs (see `supervised`).
    """

    cohort: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    few: bool = False  # train on the profile's smaller number of patients of each domain
    longer: int = 1  # so many times the profile's steps

    resampled: bool = False  # each seed has people of its own to learn from, and a distortion of its own

    def tested_on(self, seed: int) -> str:
        """Return what the cohorts of test and validation patients of the run with this seed begin with."""
        return self.data(seed) if self.resampled else self.cohort.removesuffix("_paired")

    def data(self, seed: int) -> str:
        """Return the cohort that the run with this seed learns from."""
        return f"{self.cohort}_people{seed}" if self.resampled else self.cohort


# The second paper's CycleGAN has that paper's cycle weight and no GC.
_WANG_CYCLEGAN = {"lambda_gc": 0.0, "lambda_cycle": 10.0}
# Not in the papers: one smooth field at the output, its inverse on the way back, so that no deformed cycle is needed.
_FIELD = {"offset_layers": "field", "lambda_dicycle": 0.0}
# Between PD and T2 most edges keep their sign, so that signed GC tells an image from its negative; NMI and |GC| cannot.
# Weight and rate were chosen on validation heads (seed 7, 1000 steps): GC 0.5 to 2 gave 0.4 / 0.2 dB, the slower
# discriminators 0.5 / 1.0 dB. Between MR and CT signs differ from edge to edge, so that |GC| is left. On validation
# abdomens (seed 2) its weight of 1 brings the displacement from 1.9 / 2.7 mm to 1.2 / 1.2 mm and costs 0.8 / 0.6 dB.
_SLOW_FIELD = _FIELD | {"discriminator_rate": 0.25}
_HEAD_FIELD = _SLOW_FIELD | {"lambda_gc": 2.0, "gc_absolute": False}
TRAININGS: dict[str, Training] = {
    "hip_many": Training("hip", "cyclegan", {"lambda_gc": 0.0}),
    "hip_many_gc": Training("hip", "cyclegan"),
    "hip_many_gc_long": Training("hip", "cyclegan", longer=2),  # validation hips gain a little from it
    "hip_many_signed_gc": Training("hip", "cyclegan", {"gc_absolute": False}),
    "hip_few": Training("hip", "cyclegan", {"lambda_gc": 0.0}, few=True),
    "hip_few_gc": Training("hip", "cyclegan", few=True),
    "hip_narrow": Training("hip", "cyclegan", {"lambda_gc": 0.0, "discriminator_layers": 1}),
    "head_cyclegan": Training("head", "cyclegan", _WANG_CYCLEGAN),
    "head_dicyclegan": Training("head", "dicyclegan"),
    "head_distorted_cyclegan": Training("head_distorted", "cyclegan", _WANG_CYCLEGAN),
    "head_distorted_dicyclegan": Training("head_distorted", "dicyclegan"),
    "abdomen_cyclegan": Training("abdomen", "cyclegan", _WANG_CYCLEGAN),
    "abdomen_dicyclegan": Training("abdomen", "dicyclegan"),
    "head_field": Training("head", "dicyclegan", _HEAD_FIELD),
    "head_distorted_field": Training("head_distorted", "dicyclegan", _HEAD_FIELD),
    "abdomen_field": Training("abdomen", "dicyclegan", _SLOW_FIELD | {"lambda_gc": 1.0}),
    "head_t1_cyclegan": Training("head_t1", "cyclegan", _WANG_CYCLEGAN),
    "head_t1_dicyclegan": Training("head_t1", "dicyclegan"),
    # most edges change their sign; on validation heads (seed 7) |GC| of weight 2 costs 1.6 / 2.8 dB
    "head_t1_field": Training("head_t1", "dicyclegan", _SLOW_FIELD),
    # one change each
    "hip_many_gc_paper": Training("hip", "cyclegan", {"lambda_gc": 0.3}),
    "head_distorted_cyclegan_equal_time": Training("head_distorted", "cyclegan", _WANG_CYCLEGAN, longer=2),
    "head_distorted_dicyclegan_gc": Training("head_distorted", "dicyclegan", {"lambda_gc": 0.3}),
    "head_distorted_dicyclegan_no_align": Training("head_distorted", "dicyclegan", {"lambda_align": 0.0}),
    "head_distorted_dicyclegan_shared": Training("head_distorted", "dicyclegan", {"offset_layers": "shared"}),
    "head_distorted_dicyclegan_deformable": Training("head_distorted", "dicyclegan", {"offset_layers": "convolution"}),
    # CycleGAN with the alignment loss
    "head_distorted_dicyclegan_no_offsets": Training(
        "head_distorted", "dicyclegan", {"offset_layers": "none", "lambda_dicycle": 0.0}
    ),
    # the improved method for heads, one half of it at a time: its GC and rate on offset layers; its field without GC
    "head_distorted_dicyclegan_signed_gc": Training(
        "head_distorted", "dicyclegan", {name: _HEAD_FIELD[name] for name in _HEAD_FIELD if name not in _FIELD}
    ),
    "head_distorted_field_no_gc": Training("head_distorted", "dicyclegan", _SLOW_FIELD),
    # the second paper's augmentation, once per table
    "head_dicyclegan_augmented": Training("head", "dicyclegan", {"augment": True}),
    "head_distorted_dicyclegan_augmented": Training("head_distorted", "dicyclegan", {"augment": True}),
    "abdomen_dicyclegan_augmented": Training("abdomen", "dicyclegan", {"augment": True}),
    # the bound from above
    "hip_supervised": Training("hip_paired", "supervised"),
    "head_supervised": Training("head_paired", "supervised"),
    "head_distorted_supervised": Training("head_distorted_paired", "supervised"),
    "head_t1_supervised": Training("head_t1_paired", "supervised"),
    "abdomen_supervised": Training("abdomen_paired", "supervised"),
    # does the gain hold for other people, and another distortion, too?
    "head_distorted_cyclegan_resampled": Training("head_distorted", "cyclegan", _WANG_CYCLEGAN, resampled=True),
    "head_distorted_dicyclegan_resampled": Training("head_distorted", "dicyclegan", resampled=True),
}

# U-Nets of one channel, on labelled scans of that domain: name -> (domain, channel)
ALONE = {"ct_alone": ("target", "CT"), "mr_alone": ("source", "MR")}


# --- what is recorded ---

SEEDS = (7, 1, 2, 3, 4)  # the first is the one whose translators and pictures are shown
# What `python -m tools.record` makes, the most important first: (kind, names, seeds). Kinds:
# "frames": the baselines of a cohort; "translator": a training; "spin": the same translator with `spin`;
# "mean": the mean image of the networks of three seeds, with `spin`, too; "unet": the U-Net of a run, or one of the
# comparisons; "ct_unet": the U-Net on CT alone, used on a run's synthetic CT.
_HIPS = ("hip_many_gc", "hip_many", "hip_few_gc", "hip_few")
_ABLATIONS = (
    "hip_many_signed_gc", "hip_many_gc_paper", "head_distorted_dicyclegan_gc", "head_distorted_dicyclegan_no_align",
    "head_distorted_dicyclegan_shared", "head_distorted_dicyclegan_deformable", "head_distorted_cyclegan_equal_time",
    "head_distorted_dicyclegan_no_offsets", "head_distorted_dicyclegan_augmented",
)  # fmt: skip
_PARTS = ("head_distorted_dicyclegan_signed_gc", "head_distorted_field_no_gc")  # of the improved method for heads
_BOUNDS = ("hip_supervised", "head_distorted_supervised", "abdomen_supervised", "head_supervised",
           "head_t1_supervised")  # fmt: skip
_ONCE = ("head_dicyclegan_augmented", "abdomen_dicyclegan_augmented")  # in the other tables, once each
RECORDED: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    ("frames", ("hip",), (0,)),
    ("translator", _HIPS, SEEDS[:3]),
    ("spin", _HIPS[:1], SEEDS[:3]),
    ("mean", _HIPS[:1], (0,)),
    ("translator", _HIPS[:2], SEEDS[3:]),
    ("spin", _HIPS[:1], SEEDS[3:]),
    ("translator", ("hip_many_gc_long",), SEEDS[:3]),
    ("spin", ("hip_many_gc_long",), SEEDS[:3]),
    ("translator", _BOUNDS[:1], SEEDS[:1]),
    ("frames", ("head_distorted",), (0,)),
    ("translator", ("head_distorted_cyclegan", "head_distorted_dicyclegan", "head_distorted_field"), SEEDS[:3]),
    ("spin", ("head_distorted_field",), SEEDS[:3]),
    ("frames", ("abdomen",), (0,)),
    ("translator", ("abdomen_cyclegan", "abdomen_dicyclegan", "abdomen_field"), SEEDS[:3]),
    ("spin", ("abdomen_field",), SEEDS[:3]),
    ("frames", ("head_t1",), (0,)),
    ("translator", ("head_t1_field", "head_t1_cyclegan", "head_t1_dicyclegan"), SEEDS[:3]),
    ("spin", ("head_t1_field",), SEEDS[:3]),
    ("frames", ("head",), (0,)),
    ("translator", ("head_cyclegan", "head_dicyclegan", "head_field"), SEEDS[:3]),
    ("unet", ("hip_many_gc", "mr_only", "mr_alone", "hip_many", "hip_few_gc", "hip_few"), SEEDS[:3]),
    ("ct_unet", _HIPS, SEEDS[:3]),
    ("translator", _BOUNDS[1:], SEEDS[:1]),
    ("translator", _ABLATIONS + _PARTS + _ONCE, SEEDS[:1]),
    ("translator", _ABLATIONS, SEEDS[1:3]),
    ("translator", ("head_distorted_cyclegan_resampled", "head_distorted_dicyclegan_resampled"), SEEDS[:3]),
    ("translator", _PARTS + _BOUNDS, SEEDS[1:3]),
)
# Translators kept in results/translators/, of the first seed, in half precision: those of pictures, under 16 MB in all
SHOWN = (
    "hip_many_gc", "hip_many", "hip_few_gc", "hip_few", "head_distorted_cyclegan", "head_distorted_dicyclegan",
    "head_distorted_field", "head_t1_field", "abdomen_cyclegan", "abdomen_dicyclegan", "abdomen_field",
)  # fmt: skip

_TRIVIAL = ("mean training slice", "histogram matching")
_TO_TARGET = (("direction", "source_to_target"), ("cohort", "hip"))


def _both_ways(better: str, against: str, cohort: str, measure: str = "PSNR unit") -> list[Claim]:
    """A claim for each direction of a cohort."""
    ways = ("source_to_target", "target_to_source")
    return [Claim(better, against, measure, False, (("direction", way), ("cohort", cohort))) for way in ways]


# Families of claims; Holm's correction runs over each.
CLAIMS: dict[str, list[Claim]] = {
    "Hiasa et al.": [
        Claim("hip_many_gc", "hip_many", "MAE", True, _TO_TARGET),
        Claim("hip_few_gc", "hip_few", "MAE", True, _TO_TARGET),
        Claim("hip_many", "hip_few", "MAE", True, _TO_TARGET),
        Claim("hip_many_gc", "hip_few_gc", "MAE", True, _TO_TARGET),
        Claim("hip_many_gc", "hip_many", "MI", False, _TO_TARGET),
    ],
    "Wang et al.": [
        *_both_ways("head_distorted_dicyclegan", "head_distorted_cyclegan", "head_distorted"),
        *_both_ways("head_distorted_dicyclegan_resampled", "head_distorted_cyclegan_resampled", "head_distorted"),
        *_both_ways("head_dicyclegan", "head_cyclegan", "head"),
        *_both_ways("abdomen_dicyclegan", "abdomen_cyclegan", "abdomen", "PSNR aorta"),
    ],
    "baselines": [
        *[Claim("hip_many_gc", one, "MAE", True, _TO_TARGET) for one in ("curve fitted on test pairs", *_TRIVIAL)],
        *[
            claim
            for cohort in ("head_distorted", "head", "head_t1", "abdomen")
            for method in ("dicyclegan", "field")
            for baseline in _TRIVIAL
            for claim in _both_ways(f"{cohort}_{method}", baseline, cohort)
        ],
        Claim("hip_many_gc_spin", "curve fitted on test pairs", "MAE", True, _TO_TARGET),
        *_both_ways("head_distorted_field_spin", "histogram matching", "head_distorted"),
    ],
    "changes of a method": [
        Claim("hip_many_gc_spin", "hip_many_gc", "MAE", True, _TO_TARGET),
        Claim("hip_many_gc_long", "hip_many_gc", "MAE", True, _TO_TARGET),
        *_both_ways("head_distorted_field_spin", "head_distorted_field", "head_distorted"),
        Claim("hip_many_gc", "hip_many_signed_gc", "MAE", True, _TO_TARGET),
        Claim("hip_many_gc", "hip_many_gc_paper", "MAE", True, _TO_TARGET),
        *[
            claim
            for change in ("gc", "no_align", "no_offsets", "shared", "deformable", "augmented")
            for claim in _both_ways(
                f"head_distorted_dicyclegan_{change}", "head_distorted_dicyclegan", "head_distorted"
            )
        ],
        *_both_ways("head_distorted_dicyclegan", "head_distorted_cyclegan_equal_time", "head_distorted"),
        *_both_ways("head_distorted_field", "head_distorted_dicyclegan", "head_distorted"),
        *_both_ways("head_field", "head_dicyclegan", "head"),
        *_both_ways("head_t1_field", "head_t1_dicyclegan", "head_t1"),
        *_both_ways("abdomen_field", "abdomen_dicyclegan", "abdomen", "PSNR aorta"),
        *_both_ways("abdomen_field", "abdomen_cyclegan", "abdomen"),
    ],
}


def known(table: dict[str, Any], name: str) -> Any:
    """Return the entry `name` of a table of this module; InputError that lists the names when there is none."""
    if name not in table:
        raise InputError(f"experiment {name!r} is unknown; expected one of {', '.join(table)}")
    return table[name]


def cohort_plan(name: str) -> CohortPlan:
    """Return the plan of a cohort: of COHORTS, or of "<cohort>_people<number>", distorted heads of other people.

    The variant has a distortion of its own. So have its test and validation cohorts, "<cohort>_people<number>_test",
    whose people are those of COHORTS.
    """
    if not (match := re.fullmatch(r"(head_distorted)_people(\d+)(_test|_validation|)", name)):
        return known(COHORTS, name)
    plan, number = known(COHORTS, match[1] + match[3]), 100 + int(match[2])
    changed = {"distort_target": number} | ({} if match[3] else {"seed": number})
    return CohortPlan(plan.arguments | changed, plan.patients)


def training_settings(name: str, profile: str, seed: int, **changes: Any) -> Settings:
    """Return the settings of the training `name`: the method's in the profile, the experiment's own, `changes` on top.

    Raises InputError for an unknown name and for changes that do not fit.

    >>> training_settings("hip_few_gc", "full", seed=7).patients
    20
    """
    training = known(TRAININGS, name)
    few = {"patients": PROFILES[profile].few} if training.few else {}
    schedule = PROFILES[profile].of_experiment(name)
    shared = {}
    if SCANS[profile] != profile and not training.few:  # the cohort may hold more patients than this profile takes
        patients = COHORTS[training.cohort].patients[profile]
        shared = {"patients": patients} if isinstance(patients, int) else {}
    method = "cyclegan" if training.method == "supervised" else training.method
    settings = make_settings(method, profile, seed=seed, **(training.settings | few | shared | schedule | changes))
    steps = {"iterations", "decay_iterations", "epochs", "decay_epochs"} - set(changes)
    longer = {step: training.longer * getattr(settings, step) for step in steps if getattr(settings, step) is not None}
    return dataclasses.replace(settings, **longer)
