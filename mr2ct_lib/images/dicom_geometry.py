"""The place of DICOM slices: one affine for all of them, or one sentence that names the slice that does not fit.

Every slice has its own position, orientation and size. A folder may hold a tilted gantry, a localizer, two echoes or a
copy from which slices are missing, so each slice is checked against the others.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mr2ct_lib.files import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's and ITK's axes point to left, posterior, superior
SAME_DIRECTION = 1e-3  # of unit vectors: 0.06 degrees, or 0.25 mm across 250 mm
# What may distinguish slices at one place, as people call it
DISTINCTIONS = {
    "EchoTime": "echo times", "EffectiveEchoTime": "echo times", "TemporalPositionIdentifier": "time points",
    "TemporalPositionIndex": "time points", "TriggerTime": "trigger times", "InversionTime": "inversion times",
    "DiffusionBValue": "b-values", "ImageType": "kinds of image", "FrameType": "kinds of image", "StackID": "stacks",
    "AcquisitionNumber": "acquisitions", "InstanceNumber": "instance numbers",
}  # fmt: skip

# What all slices of a volume have in common, as people call it
COMMON = {
    "Modality": "modality", "PatientID": "patient", "ImageType": "kind of image", "FrameType": "kind of image",
    "EchoTime": "echo time", "EffectiveEchoTime": "echo time",
}  # fmt: skip
IDLE = {"", "OTHER", "NONE", "MIXED", "UNSPECIFIED"}  # words of an image type that say nothing


@dataclass(frozen=True)
class Slice:
    """One image of a series. `header` states what holds for this image; `frame` numbers it in a multi-frame file."""

    path: Path
    frame: int
    header: "Dataset"

    @property
    def name(self) -> str:
        """The file, and the frame's number in a multi-frame file, for messages."""
        return str(self.path) + (f", frame {self.frame + 1}" if "NumberOfFrames" in self.header else "")

    @property
    def size(self) -> tuple[int, int]:
        """Rows, columns."""
        return int(self.header.Rows), int(self.header.Columns)

    def numbers(self, keyword: str, count: int) -> np.ndarray:
        """Return the `count` numbers of an attribute. Raises InputError when they are absent, empty or not finite."""
        from pydicom.datadict import dictionary_description

        value = None
        try:
            value = self.header.get(keyword)
            numbers = np.atleast_1d(np.asarray([] if value is None else value, dtype=np.float64))
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise InputError(
                f"{self.name}: its {dictionary_description(keyword)} is {value or 'absent'}; expected {count} number"
                f"{'s' * (count > 1)}. Export the series again, with all of its header"
            )
        return numbers


def frames(path: Path, header: "Dataset") -> list[Slice]:
    """Return the images of one file; each frame of a multi-frame file with the attributes that hold for it."""
    from pydicom import Dataset

    count = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups is None and count == 1:
        return [Slice(path, 0, header)]
    if groups is None or len(groups) != count:
        raise InputError(
            f"{path}: holds {count} frames, of which {len(groups or [])} have a place in the patient; expected one "
            "volume. It may be a film or a screenshot: choose the original CT or MR series"
        )
    common, shared = Dataset(), header.get("SharedFunctionalGroupsSequence") or []
    common.update({item.tag: item for item in header if item.VR != "SQ"})
    slices = []
    for number, group in enumerate(groups):
        merged = Dataset()
        merged.update(common)
        for sequence in (*(item for part in shared for item in part), *group):
            if sequence.VR == "SQ" and sequence.value:
                merged.update(sequence.value[0])
        slices.append(Slice(path, number, merged))
    return slices


def ordered(slices: list[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Sort slices along their normal; return them and the affine (4, 4), RAS, of array indices (column, row, slice)."""
    positions = np.array([image.numbers("ImagePositionPatient", 3) for image in slices])
    orientations = np.array([image.numbers("ImageOrientationPatient", 6) for image in slices])
    spacings = np.array([image.numbers("PixelSpacing", 2) for image in slices])
    _check_alike(slices, orientations, spacings)
    row, column = orientations[0, :3], orientations[0, 3:]  # the directions in which the column and the row number grow
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    depths = positions @ np.cross(row, column)
    order = np.argsort(depths, kind="stable")
    slices, positions, depths = [slices[k] for k in order], positions[order], depths[order]
    _check_places(slices, depths)
    _check_common(slices)
    step = (
        np.cross(row, column) * _thickness(slices[0])
        if len(slices) == 1
        else (positions[-1] - positions[0]) / (len(slices) - 1)
    )
    _check_even(slices, positions, step)
    affine = np.eye(4)
    affine[:3] = np.stack([row * spacings[0, 1], column * spacings[0, 0], step, positions[0]], axis=1)
    return slices, LPS @ affine


def _thickness(image: Slice) -> float:
    """Return how thick a lone slice is in mm."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        if image.header.get(keyword) and float(image.header.get(keyword)) > 0:
            return float(image.header.get(keyword))
    raise InputError(
        f"{image.name}: is a single slice without Slice Thickness; expected one in mm. Export the series again"
    )


def _check_alike(slices: list[Slice], orientations: np.ndarray, spacings: np.ndarray) -> None:
    """Raise InputError for the slice whose orientation, pixels, size or frame of reference differs from the others'."""
    lengths = np.linalg.norm(orientations.reshape(-1, 2, 3), axis=2)
    skew = np.abs((orientations[:, :3] * orientations[:, 3:]).sum(axis=1)) + np.abs(lengths - 1).max(axis=1)
    turn = np.abs(orientations - np.median(orientations, axis=0)).max(axis=1)
    scale = np.abs(spacings / np.median(spacings, axis=0) - 1).max(axis=1)
    sizes = np.array([image.size for image in slices])
    for wrong, problem in (
        (skew > SAME_DIRECTION, "its row and column directions are not perpendicular unit vectors"),
        (turn > SAME_DIRECTION, "has another orientation than the other slices"),
        ((spacings <= 0).any(axis=1), "its pixels have no size"),
        (scale > 1e-3, "has pixels of another size than the other slices"),
        ((sizes != np.median(sizes, axis=0)).any(axis=1), "has another number of pixels than the other slices"),
    ):
        if wrong.any():
            raise InputError(
                f"{slices[int(wrong.argmax())].name}: {problem}; expected a series of parallel slices of one size. "
                "Take localizers and reformatted images out of the folder"
            )
    frames = {uid: image for image in slices if (uid := image.header.get("FrameOfReferenceUID"))}
    if len(frames) > 1:
        raise InputError(
            f"{list(frames.values())[-1].name}: has another frame of reference than the other slices, so their places "
            "cannot be compared; expected one. Export the series again"
        )


def _check_places(slices: list[Slice], depths: np.ndarray) -> None:
    """Raise InputError when several slices lie at one place: a cine, several echoes, a copied file."""
    new_place = np.diff(depths, prepend=-np.inf) > 1e-3
    places = int(new_place.sum())
    if places == len(slices):
        return
    second = int(np.flatnonzero(~new_place)[0])
    pair = slices[second - 1 : second + 1]
    if pair[0].path != pair[1].path and len({image.header.get("SOPInstanceUID") for image in pair}) == 1:
        raise InputError(f"{pair[1].name}: is a copy of {pair[0].path.name}; expected each slice once. Remove it")
    values = [(name, *(str(image.header.get(key)) for image in pair)) for key, name in DISTINCTIONS.items()]
    difference = next((f"{name} {a} and {b}" for name, a, b in values if a != b), "their headers agree")
    other = f"frame {pair[0].frame + 1}" if pair[0].path == pair[1].path else pair[0].path.name
    raise InputError(
        f"{pair[1].name}: lies at the same place as {other} ({difference}); {len(slices)} slices share {places} "
        f"place{'s' * (places > 1)}; expected one slice per place. Export one echo, time point or volume as a series "
        "of its own"
    )


def _check_common(slices: list[Slice]) -> None:
    """Raise InputError for a slice of another patient or kind at a place of its own: a localizer, a phase image."""

    def common(image: Slice, keyword: str) -> str:
        if keyword.endswith("Type"):
            return " ".join(sorted(image_type(image.header, keyword))) or "none"
        return str(image.header.get(keyword) or "none")

    for keyword, name in COMMON.items():
        first = common(slices[0], keyword)
        for image in slices:
            other = common(image, keyword)
            if other != first and not (keyword.endswith("Time") and _near(first, other)):
                raise InputError(
                    f"{image.name}: has another {name} ({other}) than {slices[0].name} ({first}); expected slices of "
                    "one volume. Export each series on its own, without localizers"
                )


def image_type(header: "Dataset", keyword: str = "ImageType") -> set[str]:
    """The words of an image type that say what it shows: neither the first two, how it was made, nor idle ones."""
    words = header.get(keyword) or ()
    return {str(word).strip().upper() for word in ([words] if isinstance(words, str) else list(words))[2:]} - IDLE


def _near(one: str, other: str) -> bool:
    """Whether two texts are numbers that differ by less than 5 %."""
    try:
        return bool(np.isclose(float(one), float(other), rtol=0.05))
    except ValueError:
        return False


def _check_even(slices: list[Slice], positions: np.ndarray, step: np.ndarray) -> None:
    """Raise InputError when slices do not follow each other in even steps (mm)."""
    places = positions[0] + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(positions - places, axis=1).max() > 0.02 + 0.01 * np.linalg.norm(step):
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        after = int(np.abs(gaps - np.median(gaps)).argmax())
        raise InputError(
            f"{slices[after + 1].name}: lies {gaps[after]:.3g} mm from the slice before it; all lie {gaps.min():.3g} "
            f"to {gaps.max():.3g} mm apart; expected even distances. Slices are missing or do not belong together: "
            "copy the series again"
        )
