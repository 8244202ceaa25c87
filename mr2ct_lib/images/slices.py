"""Prepared slices from disk, unpaired batches of them, and their augmentation: all pure functions of a seed."""

import copy
import mmap
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch.nn import functional as F

from mr2ct_lib.files import InputError, read_json
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import ARRAYS
from mr2ct_lib.images.prepare_patient import FORMAT

DOMAINS = ("source", "target")


class PreparedSlices:
    """A folder that `prepare` wrote; its arrays stay on disk (memory-mapped) until they are looked at.

    `.source`, `.target` float32 (N, H, W) in [-1, 1]; `.labels_source`, `.labels_target` uint8, or int16
    above 255, `.valid` bool, `.truth_source_to_target`, `.truth_target_to_source` float32: None where the cohort had
    none. `.preparation` says how they came about, `.windows` is its windows by domain, `.meta` is prepared.json.

    Raises InputError when the folder holds no prepared slices, those of another version, or damaged ones.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "prepared.json").is_file():
            raise InputError(
                f"{folder}: holds no prepared.json; expected a folder that `mr2ct prepare` wrote. Run that first"
            )
        self.meta = read_json(self.folder / "prepared.json")
        if not isinstance(self.meta, dict) or self.meta.get("format") != FORMAT:
            raise InputError(
                f"{folder}/prepared.json: is not of format {FORMAT}, which this version writes. Prepare the scans again"
            )
        self.preparation = Preparation.from_dict(self.meta.get("preparation"))
        self.windows = self.preparation.windows
        shapes = {domain: (self._slices_listed(domain), *self.preparation.shape) for domain in DOMAINS}
        for name in ARRAYS:
            array = self._load(name)
            setattr(self, name, array)
            expected = shapes["target" if name in ("target", "labels_target") else "source"]
            if array is None and name not in DOMAINS:
                continue
            found = None if array is None else array.shape
            if found != expected:
                raise InputError(f"{folder}/{name}.npy: has shape {found}; expected {expected}. Prepare again")

    def _slices_listed(self, domain: str) -> int:
        """How many slices the patients of a domain have. Raises InputError unless they follow one another."""
        total = 0
        try:
            for row in self.meta["patients"][domain]:
                if not isinstance(row["id"], str) or row["first"] != total or row["count"] < 0:
                    raise ValueError(f"{row['id']!r} begins at {row['first']}, not {total}")
                total += row["count"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.folder}/prepared.json: its {domain} patients cannot be used ({error}); expected rows of id, "
                "first and count, one after the other. Prepare the scans again"
            ) from error
        return total

    def _load(self, name: str) -> np.ndarray | None:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            return None
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy reports a damaged header by errors of many kinds
            raise InputError(f"{path}: cannot be read ({error}); expected a whole .npy array. Prepare again") from error

    def patients(self, domain: str) -> list[tuple[str, slice]]:
        """Return (id, slice into the domain's arrays) of each patient, in order."""
        rows = self.meta["patients"][domain]
        return [(row["id"], slice(row["first"], row["first"] + row["count"])) for row in rows]

    def count(self, domain: str, patients: int | None = None) -> int:
        """Return how many slices the first `patients` patients (None: all) of a domain have."""
        available = len(self.meta["patients"][domain])
        if patients is not None and not 1 <= patients <= available:
            raise InputError(
                f"patients: {patients} asked of {available} in the {domain} domain; expected 1 to {available}. Take "
                "fewer"
            )
        return sum(row["count"] for row in self.meta["patients"][domain][:patients])

    def first_patients(self, source: int, target: int) -> Self:
        """Return the slices as if only so many source and target patients were there."""
        counts = {"source": source, "target": target}
        rows = {domain: self.meta["patients"][domain][: counts[domain]] for domain in DOMAINS}
        if rows == self.meta["patients"]:
            return self
        part = copy.copy(self)
        part.meta = self.meta | {"patients": rows}
        slices = {domain: sum(row["count"] for row in rows[domain]) for domain in DOMAINS}
        for name, array in vars(self).items():
            if isinstance(array, np.ndarray):  # truths and `valid` exist for pairs only: as many of both domains
                setattr(part, name, array[: slices["target" if name in ("target", "labels_target") else "source"]])
        return part


def where_patient(slices: np.ndarray) -> np.ndarray:
    """Return where slices (n, h, w) in [-1, 1] show the patient, bool: where they differ from their first row."""
    return np.abs(slices - np.median(slices[:, 0])) > 0.1


def mean_slices(
    data: PreparedSlices, domain: str, patients: int | None = None, parts: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean slice, and how often a pixel shows the patient, (parts, h, w) each, in parts of the stacks.

    patients: the first so many; None for all. A part that no patient has is blank.
    """
    array = getattr(data, domain)[: data.count(domain, patients)]
    counts = [where.stop - where.start for _, where in data.patients(domain)]
    part = np.concatenate([np.arange(count) * parts // count for count in counts])[: len(array)]
    blank = np.full((1, *array.shape[1:]), np.median(array[:, 0]))
    of_parts = [array[part == p] if (part == p).any() else blank for p in range(parts)]
    means = (x.mean(axis=0) for x in of_parts), (where_patient(x).mean(axis=0) for x in of_parts)
    return tuple(np.stack([*mean]).astype(np.float32) for mean in means)


@lru_cache(maxsize=8)
def _order(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    """The order of one epoch: a permutation of range(count)."""
    return np.random.default_rng([*seed, epoch]).permutation(count)


def epoch_indices(count: int, step: int, batch_size: int, *seed: int) -> np.ndarray:
    """Return which slices (batch_size,) a step takes from an endless row of permutations: none twice in an epoch.

    seed: one number, or several, for instance the seed of the run and the number of the domain.

    >>> sorted(np.concatenate([epoch_indices(6, step, 2, 0) for step in range(3)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_order(seed, int(p // count), count)[p % count] for p in positions])


def unpaired_batch(
    prepared: PreparedSlices, step: int, batch_size: int, seed: int, patients: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (source, target) batches of a step, float32 (batch_size, 1, H, W) in [-1, 1].

    They are a pure function of (seed, step, batch_size). Each domain runs through its own permutations, so source and
    target never correspond. `patients`: only the first n of each domain.
    """
    batches = []
    for number, domain in enumerate(DOMAINS):
        chosen = epoch_indices(prepared.count(domain, patients), step, batch_size, seed, number)
        array = getattr(prepared, domain)
        batches.append(torch.from_numpy(np.ascontiguousarray(array[chosen])[:, None]))
        if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            array.base.madvise(mmap.MADV_DONTNEED)  # else pages that were read once stay in the process's memory
    return batches[0], batches[1]


def augment(
    batch: torch.Tensor,
    seed: int,
    rotation: float = 15.0,
    shear: float = 0.012,
    translation: float = 0.05,
    flip: bool = True,
) -> torch.Tensor:
    """Return the batch (N, 1, H, W), each image flipped, turned, sheared and moved by its own random amounts;
    borders are repeated.

    Uniform: `rotation` up to +- degrees, `shear` +- as a factor, `translation` +- as a part of the side; `flip`
    left-right in half of the cases. A pure function of (batch, seed). One resampling for the whole batch, on its own
    device: 0.5 ms for 8 images of 64x64 on one core, where MONAI's RandAffine on each image takes 9.
    """
    from monai.networks.utils import to_norm_affine  # MONAI takes seconds to load
    from monai.transforms.utils import create_rotate, create_shear, create_translate

    rng = np.random.default_rng(seed)
    height, width = batch.shape[-2:]
    matrices = []
    for _ in range(len(batch)):
        turn = create_rotate(2, np.deg2rad(rng.uniform(-rotation, rotation)))
        slant = create_shear(2, rng.uniform(-shear, shear, 2))
        move = create_translate(2, rng.uniform(-translation, translation, 2) * (height, width))
        mirror = np.diag([1.0, -1.0 if flip and rng.random() < 0.5 else 1.0, 1.0])
        matrices.append(move @ turn @ slant @ mirror)
    # zero_centered: the matrices turn about the centre of the image, in pixels (row, column); the sampler wants (x, y)
    theta, size = torch.from_numpy(np.stack(matrices)).to(batch.dtype), (height, width)
    theta = to_norm_affine(theta, size, size, align_corners=True, zero_centered=True)[:, [1, 0]][:, :, [1, 0, 2]]
    theta = theta.pin_memory() if batch.is_cuda else theta  # the copy of pageable memory waits for the GPU
    grid = F.affine_grid(theta.to(batch.device, non_blocking=True), batch.shape, align_corners=True)
    return F.grid_sample(batch, grid, padding_mode="border", align_corners=True)
