"""The experiments of both papers by name: which patients, which method, which settings differ, how long.

Only data; `experiments` does the work. All numbers of patients are here, and all differences between compared runs.
"""

from dataclasses import dataclass, field
from typing import Any

from mr2ct_lib.files import InputError
from mr2ct_lib.methods.settings import METHOD_IN_PROFILE, Settings, make_settings

# Whose scans a profile uses. Profiles with one value share cohorts and prepared slices in runs/<scans>/.
SCANS = {"quick": "quick", "full": "full", "paper": "paper"}
# Patients per domain of the first paper's smaller training set
FEW = {"quick": 3, "full": 20, "paper": 20}


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
    "hip_labelled": _cohort("hip", 3, 20),
    "hip_validation": _cohort("hip", 4, 5, **_PAIRED),
    "head": _cohort("head", 1, 38),
    "head_test": _cohort("head", 2, 28, quick=8, **_PAIRED),
    "head_validation": _cohort("head", 4, 5, **_PAIRED),
    "head_distorted": _cohort("head", 1, 38, **_DISTORTED),
    "head_distorted_test": _cohort("head", 2, 28, quick=8, **_PAIRED, **_DISTORTED),
    "head_distorted_validation": _cohort("head", 4, 5, **_PAIRED, **_DISTORTED),
    "abdomen": _cohort("abdomen", 1, 40),
    "abdomen_test": _cohort("abdomen", 2, 20, quick=8, **_PAIRED),
    "abdomen_validation": _cohort("abdomen", 4, 5, **_PAIRED),
}


@dataclass(frozen=True)
class Training:
    """A training run: its cohort, its method, and the settings that differ from the method's in the profile."""

    cohort: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    few: bool = False  # train on the first FEW[profile] patients of each domain


# The second paper's CycleGAN has that paper's cycle weight and no GC.
_WANG_CYCLEGAN = {"lambda_gc": 0.0, "lambda_cycle": 10.0}
TRAININGS: dict[str, Training] = {
    "hip_many": Training("hip", "cyclegan", {"lambda_gc": 0.0}),
    "hip_many_gc": Training("hip", "cyclegan"),
    "hip_many_signed_gc": Training("hip", "cyclegan", {"gc_absolute": False}),
    "hip_few": Training("hip", "cyclegan", {"lambda_gc": 0.0}, few=True),
    "hip_few_gc": Training("hip", "cyclegan", few=True),
    "hip_narrow": Training("hip", "cyclegan", {"lambda_gc": 0.0, "discriminator_layers": 1}),
    "head_cyclegan": Training("head", "cyclegan", _WANG_CYCLEGAN),
    "head_dicyclegan": Training("head", "dicyclegan"),
    "head_distorted_cyclegan": Training("head_distorted", "cyclegan", _WANG_CYCLEGAN),
    "head_distorted_dicyclegan": Training("head_distorted", "dicyclegan"),
    "head_distorted_dicyclegan_gc": Training("head_distorted", "dicyclegan", {"lambda_gc": 0.3}),
    "abdomen_cyclegan": Training("abdomen", "cyclegan", _WANG_CYCLEGAN),
    "abdomen_dicyclegan": Training("abdomen", "dicyclegan"),
}

# Steps at the full and at the falling learning rate where a profile's own are too many, too few, or not the paper's.
# Two methods that are compared get the same number of steps, as in the second paper, though a step of DicycleGAN takes
# twice as long. hip_narrow is there to fail, which it does early.
_HEAD_STEPS = {"iterations": 300, "decay_iterations": 150}
_ABDOMEN_STEPS = {"iterations": 100, "decay_iterations": 50}
_WANG_EPOCHS = METHOD_IN_PROFILE["dicyclegan", "paper"]
SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "hip_narrow": {"iterations": 150, "decay_iterations": 100},
        **{name: _HEAD_STEPS for name in TRAININGS if name.startswith("head")},
        **{name: _ABDOMEN_STEPS for name in TRAININGS if name.startswith("abdomen")},
    },
    "full": {},
    "paper": dict.fromkeys(("head_cyclegan", "head_distorted_cyclegan", "abdomen_cyclegan"), _WANG_EPOCHS),
}

# The U-Nets of notebook 06: steps of one network, steps of each fold's network, learning rate
UNETS: dict[str, dict[str, Any]] = {
    "quick": {"iterations": 450, "fold_iterations": 180, "learning_rate": 3e-3},
    "full": {"iterations": 4000, "fold_iterations": 2000, "learning_rate": 1e-3},
    "paper": {"iterations": 100_000, "fold_iterations": 100_000, "learning_rate": 1e-4},
}
# U-Nets of one channel, on labelled scans of that domain: name -> (domain, channel)
ALONE = {"ct_alone": ("target", "CT"), "mr_alone": ("source", "MR")}


def known(table: dict[str, Any], name: str) -> Any:
    """Return the entry `name` of a table of this module; InputError that lists the names when there is none."""
    if name not in table:
        raise InputError(f"experiment {name!r} is unknown; expected one of {', '.join(table)}")
    return table[name]


def training_settings(name: str, profile: str, seed: int, **changes: Any) -> Settings:
    """Return the settings of the training `name`: the method's in the profile, the experiment's own, `changes` on top.

    Raises InputError for an unknown name and for changes that do not fit.

    >>> training_settings("hip_few_gc", "full", seed=7).patients
    20
    """
    training = known(TRAININGS, name)
    few = {"patients": FEW[profile]} if training.few else {}
    schedule = SCHEDULES.get(profile, {}).get(name, {})
    settings = training.settings | few | schedule | changes
    return make_settings(training.method, profile, seed=seed, **settings)
