"""Everything that a training run can be told, and the three profiles: quick, full, paper."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from mr2ct_lib.files import InputError

METHODS = ("cyclegan", "dicyclegan")


@dataclass(frozen=True)
class Settings:
    """The settings of one run; each name is also a key for `mr2ct train --set name=value`. Defaults are the papers'.

    Marks in the comments: H = Hiasa et al. 2018, W = Wang et al. 2018, Z = Zhu et al. 2017 where H and W are silent.
    """

    method: str  # "cyclegan" or "dicyclegan"
    profile: str = "quick"
    seed: int = 7
    patients: int | None = None  # train on the first so many patients of each domain; None for all
    iterations: int = 100_000  # at the full learning rate (H)
    decay_iterations: int = 100_000  # then falling linearly to 0 (H)
    epochs: int | None = (
        None  # in the place of iterations: times that each slice of the larger domain is seen (100 in W)
    )
    decay_epochs: int | None = None  # in the place of decay_iterations (100 in W)
    patience: int | None = (
        None  # epochs without a lower total loss after which the rate begins to fall (10 in W); None: never
    )
    decay_patience: int | None = None  # the same while it falls, after which the run ends (20 in W)
    batch_size: int = 1  # slices of each domain a step, over all processes (Z)
    learning_rate: float = 2e-4  # Adam (H, W)
    discriminator_rate: float = 1.0  # the discriminators' learning rate over the generators' (Z)
    beta1: float = 0.5  # (Z)
    filters: int = 64  # of the generator's first convolution (H, W by Z)
    blocks: int = 9  # residual blocks (H, W)
    upsampling: str = (
        "transposed"  # convolutions (Z), or "resize": pixels repeated, then convolved, which prints no checkerboard
    )
    discriminator_filters: int = 64  # (Z)
    discriminator_layers: int = 3  # strided layers: 3 is the 70x70 PatchGAN (H, W)
    pool_size: int = 50  # synthetic slices that a discriminator remembers (Z)
    augment: bool = False  # flips, rotations, shears, translations (W)
    average: float = 0.0  # of the running mean of weights that the translator keeps; 0: the weights of the last step
    lambda_cycle: float = 3.0  # (H); 10 in W
    lambda_gc: float = 0.3  # (H); 0 leaves gradient consistency out
    gc_operator: str = "central"  # "central", "sobel" or "forward"
    gc_absolute: bool = True  # compare gradient magnitudes; False is Eq. 4 of H as printed
    lambda_align: float = 0.9  # NMI alignment, dicyclegan only (W)
    lambda_dicycle: float = 10.0  # deformed cycle, dicyclegan only (W)
    offset_layers: str = "per_channel"  # or "shared", "convolution", "field", "none"; dicyclegan only
    precision: str = "auto"  # what this machine is measured to be faster in; or "bf16", "float16", "float32"
    log_every: int = 10  # steps between two lines of log.jsonl
    checkpoint_every: int = 500  # steps
    sample_every: int = 500  # steps between two sample images; 0 for none

    @property
    def total_iterations(self) -> int:
        """Steps in both phases."""
        return self.iterations + self.decay_iterations

    def learning_rate_at(self, step: int) -> float:
        """The rate of step 0, 1, ...: constant for `iterations` + 1 steps, then falling linearly.

        It falls by 1 / (decay_iterations + 1) of `learning_rate` a step; the last step has twice that. In the code of
        Zhu et al. it falls one step earlier.
        """
        into_decay = max(0, step - self.iterations)
        return self.learning_rate * (1 - into_decay / (self.decay_iterations + 1))

    def steps_per_epoch(self, slices: int) -> int:
        """Steps until each of `slices` slices, those of the larger domain, is seen once; the last batch may see more.

        >>> make_settings("cyclegan", batch_size=4).steps_per_epoch(10)
        3
        """
        return -(-slices // self.batch_size)

    def in_steps(self, slices: int) -> "Settings":
        """These settings with epochs, where given, turned into steps for a larger domain of `slices` slices.

        >>> make_settings("dicyclegan", "paper").in_steps(380).iterations
        38000
        """
        epoch = self.steps_per_epoch(slices)
        given = {"iterations": self.epochs, "decay_iterations": self.decay_epochs}
        return dataclasses.replace(
            self, **{name: epochs * epoch for name, epochs in given.items() if epochs is not None}
        )


@dataclass(frozen=True)
class UNet:
    """The segmentation network of a profile and how long it is trained."""

    widths: tuple[int, ...]  # channels of each level
    iterations: int  # of each fold's network, too
    learning_rate: float
    batch_size: int


@dataclass(frozen=True)
class Profile:
    """All that a profile decides about training. One entry of PROFILES is a profile."""

    both: dict[str, Any]  # settings of either method
    cyclegan: dict[str, Any]  # settings of one method, on top
    dicyclegan: dict[str, Any]
    experiments: dict[str, dict[str, Any]]  # settings of the experiments whose names begin so, on top
    few: int  # patients per domain of the first paper's smaller training set
    unet: UNet

    def of_experiment(self, name: str) -> dict[str, Any]:
        """Return the settings that this profile changes for the experiment `name`.

        >>> PROFILES["quick"].of_experiment("head_dicyclegan")
        {'iterations': 300, 'decay_iterations': 200}
        """
        changes = [settings for start, settings in self.experiments.items() if name.startswith(start)]
        return {key: value for settings in changes for key, value in settings.items()}


# The second paper's epochs, early stopping and augmentation; its CycleGAN has them, too.
_WANG = {"augment": True, "epochs": 100, "decay_epochs": 100, "patience": 10, "decay_patience": 20}
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "cyclegan": {},
    "dicyclegan": {"lambda_cycle": 10.0, "lambda_gc": 0.0},
}
# Slices of 128 x 128 one by one, discriminators whose patch (142 pixels) is wider: chosen on validation patients. In
# the 192 x 192 pixels of an abdomen the patient takes about 153 x 106, so that a patch misses some of the flanks only.
_SMALL = {
    "filters": 16,
    "blocks": 4,
    "upsampling": "resize",
    "discriminator_filters": 16,
    "discriminator_layers": 4,
    "learning_rate": 4e-4,  # a thousand steps instead of 200 000: larger ones, and a mean of the last weights
    "gc_operator": "forward",
}
_SMALL_CYCLEGAN = {"lambda_gc": 1.0}  # 0.3 shows in the paper's 200 000 steps, hardly in a thousand
PROFILES: dict[str, Profile] = {
    "quick": Profile(
        both=_SMALL
        | {
            "average": 0.997,
            "iterations": 600,
            "decay_iterations": 400,
            "checkpoint_every": 100,
            "sample_every": 100,
        },
        cyclegan=_SMALL_CYCLEGAN,
        dicyclegan={},
        # compared methods get equal steps, as in the second paper; hip_narrow is there to fail, which it does early
        experiments={
            "hip_narrow": {"iterations": 200, "decay_iterations": 100},
            "head": {"iterations": 300, "decay_iterations": 200},
            "abdomen": {"iterations": 150, "decay_iterations": 50},
        },
        few=6,
        unet=UNet((16, 32, 64, 128), iterations=400, learning_rate=3e-3, batch_size=4),
    ),
    "full": Profile(
        # validation hips gain a little from twice the steps: MAE 14.2 grey levels, not 14.9 (hip_many_gc_long)
        both=_SMALL | {"average": 0.998, "iterations": 4000, "decay_iterations": 4000},
        cyclegan=_SMALL_CYCLEGAN,
        dicyclegan={},
        experiments={
            "head": {"iterations": 1000, "decay_iterations": 1000},
            "abdomen": {"iterations": 1000, "decay_iterations": 500},
            # as many steps; on validation abdomens (seed 2) the earlier fall of the rate gains 1.3 / 0.5 dB
            "abdomen_field": {"iterations": 500, "decay_iterations": 1000},
        },
        few=20,
        # five validation hips, one seed: mean Dice 0.805; 2000 steps bring 0.816 for twice the time
        unet=UNet((32, 64, 128, 256), iterations=1000, learning_rate=2e-3, batch_size=4),
    ),
    "paper": Profile(
        both={},
        cyclegan={},
        dicyclegan=_WANG,
        experiments={"head": _WANG, "abdomen": _WANG},
        few=20,
        # widths as in Ronneberger et al. 2015; the first paper gives none
        unet=UNet((64, 128, 256, 512, 1024), iterations=100_000, learning_rate=1e-4, batch_size=16),
    ),
}
ONLY_DICYCLEGAN = ("lambda_align", "lambda_dicycle", "offset_layers")
ONLY_WITH_GC = ("gc_operator", "gc_absolute")


def make_settings(method: str, profile: str = "quick", **changes: Any) -> Settings:
    """The settings of `method` in `profile`, with `changes` on top, checked.

    Raises InputError for an unknown method, profile or name, a value of another type, or values that exclude each
    other.

    >>> make_settings("cyclegan", "paper").total_iterations
    200000
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown; expected one of {', '.join(METHODS)}")
    if profile not in PROFILES:
        raise InputError(f"profile {profile!r} is unknown; expected one of {', '.join(PROFILES)}")
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    for name in changes:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(fields)}"
            raise InputError(f"setting {name!r} is unknown; {hint}")
    start = METHOD_DEFAULTS[method] | PROFILES[profile].both | getattr(PROFILES[profile], method)
    for steps, epochs in (("iterations", "epochs"), ("decay_iterations", "decay_epochs")):
        if steps in changes:  # what is asked for in steps takes the place of a profile's epochs
            start.pop(epochs, None)
            if changes.get(epochs) is not None:
                raise InputError(f"settings {steps} and {epochs} both say how long to train; expected one of them")
    typed = {name: _typed(name, value, fields[name].type) for name, value in changes.items()}
    settings = Settings(method=method, profile=profile, **(start | typed))
    _check(settings)
    for names, missing in ((ONLY_DICYCLEGAN, method == "cyclegan"), (ONLY_WITH_GC, settings.lambda_gc == 0)):
        if missing and (idle := [name for name in names if name in changes]):
            why = "method cyclegan" if names == ONLY_DICYCLEGAN else "lambda_gc=0"
            raise InputError(
                f"setting {idle[0]} does nothing with {why}; expected one that does. Leave it out, or change {why}"
            )
    return settings


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value`, or its text from the command line, as the setting's type; InputError when it is none."""
    refusal = InputError(f"setting {name}={value!r} does not fit; expected {getattr(kind, '__name__', kind)}")
    if isinstance(value, str):
        lowered = value.lower()
        if kind is bool:
            if lowered not in ("true", "false"):
                raise refusal
            return lowered == "true"
        if kind is str:
            return value
        if lowered in ("none", "all") and kind == (int | None):
            return None
        try:
            return float(value) if kind is float else int(value)
        except ValueError as error:
            raise refusal from error
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise refusal
    return value


def _check(s: Settings) -> None:
    """InputError for the first value that cannot be meant."""
    positive = (
        "batch_size",
        "filters",
        "discriminator_filters",
        "discriminator_layers",
        "blocks",
        "log_every",
        "checkpoint_every",
    )
    for name in positive:
        if getattr(s, name) < 1:
            raise InputError(f"setting {name}={getattr(s, name)} is too small; expected at least 1")
    not_negative = (
        "iterations",
        "decay_iterations",
        "pool_size",
        "sample_every",
        "seed",
        "learning_rate",
        "discriminator_rate",
        "lambda_cycle",
        "lambda_gc",
    )
    for name in (*not_negative, "lambda_align", "lambda_dicycle"):
        if not 0 <= getattr(s, name) < float("inf"):
            raise InputError(f"setting {name}={getattr(s, name)} is out of range; expected 0 or more")
    if s.seed >= 2**61:  # four networks are drawn from seeds of 63 bits that are made of it
        raise InputError(f"setting seed={s.seed} is too large; expected less than 2**61. Take a smaller number")
    choices = {
        "gc_operator": ("central", "sobel", "forward"),
        "upsampling": ("transposed", "resize"),
        "offset_layers": ("per_channel", "shared", "convolution", "field", "none"),
        "precision": ("auto", "bf16", "float16", "float32"),
    }
    for name, allowed in choices.items():
        if getattr(s, name) not in allowed:
            raise InputError(f"setting {name}={getattr(s, name)!r} is unknown; expected one of {', '.join(allowed)}")
    for name in ("patients", "epochs", "patience", "decay_patience", "decay_epochs"):
        least, value = int(name not in ("epochs", "decay_epochs")), getattr(s, name)
        if value is not None and value < least:
            raise InputError(f"setting {name}={value} is too small; expected at least {least}, or none")
    if not (s.iterations if s.epochs is None else s.epochs) + (
        s.decay_iterations if s.decay_epochs is None else s.decay_epochs
    ):
        raise InputError("iterations and decay_iterations are both 0; expected at least one step in all")
    for name in ("beta1", "average"):
        if not 0 <= getattr(s, name) < 1:
            raise InputError(f"setting {name}={getattr(s, name)} is out of range; expected at least 0 and less than 1")
