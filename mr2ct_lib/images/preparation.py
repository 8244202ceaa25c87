"""The contract between scans and networks: how a scan becomes network slices, and how slices become a scan again.

`prepare` writes a `Preparation`, a translator carries it, `synthesize` and `segment` use it. Its methods `to_slices`
and `to_volume` are the only place where a scan becomes slices and slices become a scan.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from typing import Any

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images import intensity
from mr2ct_lib.images.intensity import Body, Window, find_body, mr_scale, without_negative, without_unmeasured
from mr2ct_lib.images.volumes import Volume, plane_axes, reslice, slices_of, volume_from_slices

SAME_SPACING = 0.01  # voxels whose size differs by less from the wanted one are kept: interpolation would blur more
STRIDE = 0.75  # of a field of view: where the body needs several, neighbours overlap by at least a quarter
BLANK = 0.1  # a slice is blank when the middle 98 % of its pixels, in [-1, 1], differ by less
LARGEST = 2**14  # pixels of a side of a slice
CUT_AT_MOST = 0.95  # of the body beyond the window: more, and the networks see black or white
NORMALISATION = {"HU": None, "%": "percentile", "SD": "zscore"}  # what gives a scan the unit of its window
Grid = tuple[tuple[int, int, int], np.ndarray]  # shape (I, J, K) and affine (4, 4)


@dataclass(frozen=True)
class Place:
    """Where the network slices of one scan lie, and in which unit they are.

    All fields of view lie in one grid along the scan's own axes. `origins` (n, 3) holds for each slice its number,
    first row and first column in the slices of this grid. `training` (n,) marks the slices of the field of view that
    training takes: `prepare` writes these. `(array - offset) / scale` is in the window's unit.
    """

    grid: Grid
    first: np.ndarray  # (3,) voxel index in the scan of the grid's first voxel
    step: np.ndarray  # (3,) size of the grid's voxels in voxels of the scan; all 1: they are the scan's own
    origins: np.ndarray
    training: np.ndarray
    field: Grid  # the field of view of training, blank slices included
    field_start: int  # number of its first slice in the slices of `grid`
    offset: float = 0.0
    scale: float = 1.0
    cut: float = 0.0  # share of the body's values beyond the window, which the networks see as its ends
    shifted: bool = False  # the MR reached below zero and was shifted

    @property
    def numbers(self) -> np.ndarray:
        """Which slices of `field` training takes, (count,) int."""
        return self.origins[self.training, 0] - self.field_start


@dataclass(frozen=True)
class Preparation:
    """How every scan of a source and a target domain becomes slices of one size, and back.

    Field of view: `shape` pixels around the middle of the body, so that it does not matter how much air was scanned. A
    body that is larger gets several overlapping ones. Slices are `slice_spacing` apart; thicker ones stay as they are.
    Training takes the middle `slab` slices (None: all). Outside the scan lies air: 0 for MR, -1000 HU for CT.
    """

    plane: str  # "coronal", "axial" or "sagittal"
    pixel: float  # mm, of rows and columns
    shape: tuple[int, int]  # rows and columns of a slice
    slice_spacing: float  # mm
    windows: dict[str, Window]  # by domain; what the networks see as [-1, 1]
    n4: dict[str, bool] = field(default_factory=lambda: {"source": False, "target": False})  # remove the bias field
    n4_profile: str = "full"  # how thorough N4 is
    slab: int | None = None

    @property
    def normalisation(self) -> dict[str, str | None]:
        """By domain: what gives a scan its window's unit, "percentile" or "zscore" for MR (see `mr_scale`), None for
        CT."""
        return {domain: NORMALISATION[window.unit] for domain, window in self.windows.items()}

    @property
    def spacing(self) -> tuple[float, float]:
        """mm per row and per column."""
        return self.pixel, self.pixel

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Preparation":
        """The preparation that `as_dict` described. Raises InputError when its keys are others."""
        wanted, given = [one.name for one in fields(cls)], list(content) if isinstance(content, dict) else content
        if not isinstance(content, dict) or set(wanted) != set(given):
            raise InputError(f"preparation: {given}; expected {', '.join(wanted)}. Prepare the scans again")
        try:
            windows = {domain: Window.from_dict(content["windows"][domain]) for domain in ("source", "target")}
            n4 = {domain: bool(content["n4"][domain]) for domain in windows}
            preparation = cls(**content | {"shape": tuple(content["shape"]), "windows": windows, "n4": n4})
            preparation._check()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"preparation: cannot be used ({error}); expected what `mr2ct prepare` writes. Prepare the scans again"
            ) from error
        return preparation

    def _check(self) -> None:
        """Raise InputError for what no scan can be prepared with."""
        plane_axes(self.plane)
        if not all(1e-3 < mm < 1e3 for mm in (self.pixel, self.slice_spacing)):
            raise InputError(f"pixel {self.pixel} mm, slices {self.slice_spacing} mm; expected 0.001 to 1000 mm")
        if len(self.shape) != 2 or not all(isinstance(n, int) and 1 <= n <= LARGEST for n in self.shape):
            raise InputError(f"shape {self.shape}; expected rows and columns of a slice")
        windows = " and ".join(map(str, self.windows.values()))
        if any(window.unit not in NORMALISATION for window in self.windows.values()):
            raise InputError(f"windows {windows}; expected one of the units {', '.join(NORMALISATION)}")
        if self.n4_profile not in intensity.N4_PROFILES:
            raise InputError(f"n4_profile {self.n4_profile!r}; expected one of {', '.join(intensity.N4_PROFILES)}")
        if not (self.slab is None or (isinstance(self.slab, int) and self.slab >= 1)):
            raise InputError(f"slab {self.slab}; expected a number of slices, or none")

    def to_slices(self, volume: Volume, domain: str) -> tuple[np.ndarray, Place]:
        """A scan of `domain` as network slices, float32 (n, H, W) in [-1, 1] without blank ones, and their place."""
        _, raw, place = self._in_place(volume, domain)
        stack = self._to_network(raw, place, domain)
        height, width = self.shape
        slices = np.empty((len(place.origins), height, width), np.float32)
        for n, (number, row, column) in enumerate(place.origins):
            slices[n] = stack[number, row : row + height, column : column + width]
        kept = ~blank(slices)
        return slices[kept], replace(place, origins=place.origins[kept], training=place.training[kept])

    def to_volume(self, slices: np.ndarray, place: Place, volume: Volume, unit: str, fill: float) -> Volume:
        """Slices (n, H, W) at their `place` as a Volume in `unit` on the grid of `volume`, the scan they came from.

        Overlapping fields of view are blended; of labels, that of the nearer middle is taken. `fill` lies elsewhere.
        """
        number, affine = plane_axes(self.plane)[0], place.grid[1]
        array = volume_from_slices(self._blend(slices, place, unit == "label", fill), self.plane)
        if (place.step == 1).all():
            result = np.full(volume.array.shape, fill, array.dtype)
            axes = zip(place.first.astype(int), array.shape, result.shape, strict=True)
            both = [(first, max(0, first), min(first + n, whole)) for first, n, whole in axes]
            inside = tuple(slice(low - first, high - first) for first, low, high in both)
            result[tuple(slice(low, high) for _, low, high in both)] = array[inside]
        else:  # the scan's ends reach up to half a slice beyond the first and the last slice
            array = np.pad(array, [(1, 1) if axis == number else (0, 0) for axis in range(3)], mode="edge")
            affine = affine @ _move(np.ones(3), -np.eye(3)[number])
            result = reslice(Volume(array, affine, unit), volume.array.shape, volume.affine, fill=fill).array
        return volume.replace(array=result, unit=unit)

    def on_grid(self, volume: Volume, domain: str, grid: Grid) -> tuple[np.ndarray, Place]:
        """A scan of `domain` as slices (n, h, w) in [-1, 1] on the grid of another scan of the same patient.

        Returns them and the scan's own place.
        """
        scan, _, place = self._in_place(volume, domain)
        return self._to_network(slices_of(reslice(scan, *grid), self.plane), place, domain), place

    def _in_place(self, volume: Volume, domain: str) -> tuple[Volume, np.ndarray, Place]:
        """The scan without its bias field, its slices (n, h, w) in the scan's own values, and their place."""
        method, window = self.normalisation[domain], self.windows[domain]
        if method is None:  # the file may not say that it is a CT
            volume = without_unmeasured(volume.replace(unit="HU"))
        lifted = without_negative(volume) if method else volume
        body = find_body(lifted)
        scan = intensity.n4(lifted, body, self.n4_profile) if self.n4[domain] else lifted
        place = self._place(scan, body)
        values, scan = scan.array[body.mask] if body.mask.any() else scan.array, _without_padding(scan)
        raw = slices_of(reslice(scan, *place.grid), self.plane)
        offset, scale = 0.0, 1.0
        if method == "percentile":
            offset, scale = mr_scale(values, method)
        elif method == "zscore":  # over the field of view of training, however much air was scanned around it
            _, row, column = place.origins[0]
            last = place.field_start + place.field[0][plane_axes(self.plane)[0]]
            field_of_view = raw[place.field_start : last, row : row + self.shape[0], column : column + self.shape[1]]
            offset, scale = mr_scale(field_of_view, method)
        low, high = window.low * scale + offset, window.high * scale + offset
        cut = float(((values < low) | (values > high)).mean())
        return scan, raw, replace(place, offset=offset, scale=scale, cut=cut, shifted=lifted is not volume)

    def _to_network(self, raw: np.ndarray, place: Place, domain: str) -> np.ndarray:
        values = (raw - place.offset) / place.scale
        return np.ascontiguousarray(self.windows[domain].to_network(values), dtype=np.float32)

    def _place(self, scan: Volume, body: Body) -> Place:
        """Where the slices of a scan lie whose body is `body`. Scale and offset are left open."""
        number, row, column, reverse = plane_axes(self.plane)
        wanted = np.empty(3)
        wanted[[number, row, column]] = self.slice_spacing, self.pixel, self.pixel
        step = wanted / scan.spacing
        step[number] = max(1.0, step[number])
        step[np.abs(step - 1) < SAME_SPACING] = 1.0
        size, before, after, first = np.zeros(3, int), np.zeros(3, int), np.zeros(3, int), np.zeros(3)
        for axis, length in enumerate(scan.array.shape):
            ends = body.box[axis].start, body.box[axis].stop
            if axis == number:
                size[axis] = _slab(self.slab, length / step[axis])
                covered = 0, length
            else:
                size[axis] = self.shape[0] if axis == row else self.shape[1]
                covered = ends
            first[axis], before[axis], after[axis] = _along(step[axis], size[axis], ends, covered)
        whole, origin = before + size + after, first - before * step
        affine = scan.affine @ _move(step, origin)
        starts = {}
        for axis in (row, column):
            places = _starts(before[axis], size[axis], after[axis])
            starts[axis] = [whole[axis] - n - size[axis] if axis in reverse else n for n in places]
        fields_of_view = list(product(starts[row], starts[column]))  # the first is that of training
        origins = np.array([(n, *start) for start in fields_of_view for n in range(whole[number])])
        if self.slab is None:
            size[number], before[number] = whole[number], 0
        taken = (origins[:, 0] >= before[number]) & (origins[:, 0] < before[number] + size[number])
        taken &= np.arange(len(origins)) < whole[number]
        field = tuple(int(n) for n in size), affine @ _move(np.ones(3), before)
        grid = tuple(int(n) for n in whole), affine
        return Place(grid, origin, step, origins, taken, field, int(before[number]))

    def _blend(self, slices: np.ndarray, place: Place, labels: bool, fill: float) -> np.ndarray:
        """Slices (n, H, W) at their place in the slices (n, h, w) of the whole grid."""
        number, row, column, _ = plane_axes(self.plane)
        shape = tuple(place.grid[0][axis] for axis in (number, row, column))
        near = [np.minimum(np.arange(n) + 1, n - np.arange(n)) / n for n in self.shape]
        weight = np.outer(*near).astype(np.float32)
        result, weights = np.full(shape, fill, slices.dtype), np.zeros(shape, np.float32)
        for values, (n, r, c) in zip(slices, place.origins, strict=True):
            here = n, slice(r, r + self.shape[0]), slice(c, c + self.shape[1])
            share = weight / (weights[here] + weight)
            if labels:
                result[here] = np.where(share > 0.5, values, result[here])
                weights[here] = np.maximum(weights[here], weight)
            else:
                result[here] = np.where(share < 1, result[here] + share * (values - result[here]), values)
                weights[here] += weight
        return result


def check_window(cut: float, window: Window, what: str) -> None:
    """Raise InputError when a window cuts nearly all of the body. cut: share of the body's values beyond it, 0 to 1."""
    if cut > CUT_AT_MOST:
        raise InputError(
            f"{what}: {cut:.1%} of the body lies beyond the window of {window}; "
            f"expected at most {CUT_AT_MOST:.0%}. Choose a window that holds the values of tissue"
        )


def blank(slices: np.ndarray) -> np.ndarray:
    """Which of the slices (n, h, w) in [-1, 1] show nothing: all but 2 % of their pixels are nearly alike; (n,) bool.
    """
    low, high = np.percentile(slices.reshape(len(slices), slices.shape[1] * slices.shape[2]), (1, 99), axis=1)
    return high - low < BLANK


def _without_padding(scan: Volume) -> Volume:
    """The scan without outer planes of nothing but air, 0 in MR and -1000 HU or less in CT.

    A field of view that cuts the body ends there, whether or not zeros were added around it: interpolation must not mix
    tissue with them.
    """
    shown = scan.array > -1000 if scan.unit == "HU" else scan.array != 0
    if not shown.any():
        return scan
    ends = [np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    first = np.array([low for low, _ in ends])
    if not first.any() and all(high == n - 1 for (_, high), n in zip(ends, shown.shape, strict=True)):
        return scan
    array = scan.array[tuple(slice(low, high + 1) for low, high in ends)]
    return Volume(array, scan.affine @ _move(np.ones(3), first), scan.unit)


def _slab(slab: int | None, room: float) -> int:
    """Slices that training takes of a scan with room for so many: `slab`, or fewer by an even number; 0 for all."""
    if slab is None:
        return 1 if room < 1.5 else 0
    return max(1, slab - 2 * max(0, int(np.ceil((slab - room - 0.5) / 2))))


def _along(step: float, size: int, body: tuple[int, int], covered: tuple[int, int]) -> tuple[float, int, int]:
    """Along one axis: the scan's voxel index of the first of `size` steps, and how many steps lie before and after
    them.

    The steps lie around the middle of the body (first voxel, last + 1); those before and after them reach to the ends
    of `covered`.
    """
    reach = size * step
    begin = (sum(body) - reach) / 2  # edge of the first step, in voxels from the scan's edge
    if step == 1:
        begin = np.floor(begin + 0.5)
    before = max(0, round((begin - covered[0]) / step))
    after = max(0, round((covered[1] - begin - reach) / step))
    return begin + (step - 1) / 2, before, after


def _starts(before: int, size: int, after: int) -> list[int]:
    """Where fields of view of `size` pixels begin that cover so many pixels before and after the first of them."""
    stride = max(1, int(size * STRIDE))
    left, right = -(-before // stride), -(-after // stride)
    return [before, *(before - round(before * n / left) for n in range(1, left + 1))] + [
        before + round(after * n / right) for n in range(1, right + 1)
    ]


def _move(step: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The affine from indices of a grid to those of another: voxel 0 lies at `first`, the next one `step` further."""
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = first
    return matrix
