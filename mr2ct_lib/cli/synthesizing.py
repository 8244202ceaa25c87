"""What `mr2ct synthesize` does with scans and translators: one or many of each, results in a file, a DICOM series or a
folder."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from mr2ct_lib import cores
from mr2ct_lib.cli.entry import check_encoding, kept_warnings, speak
from mr2ct_lib.cli.outputs import check_folder, check_series, is_nifti_name, with_ending
from mr2ct_lib.course.recorded import find_translator
from mr2ct_lib.files import InputError, read_json, write_json
from mr2ct_lib.images.dicom_reading import holds_images
from mr2ct_lib.images.folders import scans_in
from mr2ct_lib.images.scan_files import META
from mr2ct_lib.images.volumes import Volume, read_volume, write_volume
from mr2ct_lib.methods.synthesis import synthesize
from mr2ct_lib.methods.translator import Translator, load_translator

RECORD = "synthesis.json"  # in a folder of results: what they were made with, and of
SPREAD, PICTURE = "_spread.nii.gz", "_qa.png"  # how names of files beside a result end


@dataclass(frozen=True)
class Synthesis:
    """How scans are translated: by one translator, or by several of the same kind of slices (other seeds), whose mean
    is the result.

    strict: refuse a scan that is unlike the training scans. qa: also draw a picture per scan.
    spin: the mean over four places on the pixel grid.
    dicom: write DICOM series instead of NIfTI files.
    keep_patient: put DICOM series into the study of their scans, with the patient's data.
    """

    folders: list[Path]
    translators: list[Translator]
    reverse: bool = False
    strict: bool = False
    qa: bool = False
    dicom: bool = False
    keep_patient: bool = False
    spin: bool = False

    def __call__(self, scan: Volume) -> tuple[Volume, Volume | None]:
        """The synthetic scan and, of several translators, the spread (standard deviation) of their results, else
        None."""
        return mean_and_spread(
            synthesize(scan, one, self.reverse, progress=True, strict=self.strict, spin=self.spin)
            for one in self.translators
        )

    def __reduce__(self) -> tuple:
        """Other processes load the translators from their folders, which is less than sending the weights."""
        folders = [folder.absolute() for folder in self.folders]
        return _load, (folders, self.reverse, self.strict, self.qa, self.dicom, self.keep_patient, self.spin)

    def record(self) -> dict[str, object]:
        """What decides the result, for the folder of results."""
        digests = [_digest(folder) for folder in self.folders]
        more = {"strict": self.strict, "spin": self.spin, "keep_patient": self.keep_patient}
        return {"translators": digests, "reverse": self.reverse} | {name: True for name, given in more.items() if given}


def _load(folders: list[Path], *options: bool) -> Synthesis:
    return Synthesis(folders, [load_translator(folder) for folder in folders], *options)


def load_synthesis(folders: list[Path], reverse: bool, **options: bool) -> Synthesis:
    """Load the translators, each a folder or the name of a recorded one.

    Raises InputError when one cannot be used or they give different units or windows.
    """
    folders = [find_translator(folder) for folder in folders]
    translators = [load_translator(folder) for folder in folders]
    digests = [_digest(folder) for folder in folders]
    for number, folder in enumerate(folders):
        first = folders[digests.index(digests[number])]
        if digests[number] in digests[:number]:
            raise InputError(
                f"{folder}: is the same translator as {first}; expected other seeds, or the spread would be too small. "
                "Leave one out"
            )
    domain = "source" if reverse else "target"
    for folder, other in zip(folders, translators, strict=True):
        first, own = (one.preparation.windows[domain] for one in (translators[0], other))
        if first != own:
            raise InputError(
                f"{folder}: gives {own}, {folders[0]} gives {first}; expected translators of the same slices. "
                "Leave one out"
            )
    unit = translators[0].preparation.windows[domain].unit
    if options.get("dicom") and unit != "HU":
        raise InputError(f"{folders[0]}: gives MR in {unit}; expected CT in HU for a DICOM series. Write name.nii.gz")
    return Synthesis(folders, translators, reverse, **options)


def mean_and_spread(results) -> tuple[Volume, Volume | None]:
    """The mean of scans on one grid, and their standard deviation (n - 1) in the same unit; None for a single scan.

    Runs through `results` once and keeps two arrays in memory (Welford's algorithm).

    >>> two = (Volume(np.full((1, 1, 2), value), np.eye(4), "HU") for value in (-10.0, 30.0))
    >>> [round(float(volume.array[0, 0, 0]), 1) for volume in mean_and_spread(two)]
    [10.0, 28.3]
    """
    count, mean, squares = 0, 0.0, 0.0
    for count, volume in enumerate(results, start=1):
        change = volume.array.astype(np.float32) - mean
        mean = mean + change / count
        squares = squares + change * (volume.array - mean)
    if count == 1:
        return volume, None
    return volume.replace(array=mean), volume.replace(array=np.sqrt(squares / (count - 1)).astype(np.float32))


def scans_of(path: Path) -> dict[str, Path] | None:
    """Name -> scan of a folder of scans; None where `path` is one scan itself: a file, or the folder of one DICOM
    series.

    Raises InputError for an empty folder, and for one that is both.
    """
    if not path.is_dir():
        return None
    if holds_images(path):  # slices lie right here
        beside = [scan.name for scan in scans_in(path, slices=True).values() if scan.is_file()]
        if beside:
            raise InputError(
                f"{path}: holds DICOM slices and {beside[0]}; expected one DICOM series or a folder of scans. Put the "
                "series into a folder of its own"
            )
        return None
    scans = {name: scan for name, scan in scans_in(path).items() if not (scan / RECORD).is_file()}  # earlier results
    if not scans:
        raise InputError(f"{path}: holds no scans; expected NIfTI files or DICOM folders. Choose another folder")
    return None if len(scans) <= 1 and all(scan.is_dir() for scan in scans.values()) else scans


def write_result(result: Volume, spread: Volume | None, scan: Path, out: Path, keep_patient: bool = False) -> None:
    """Write the synthetic scan to `out`: a NIfTI file, or a folder for a DICOM series; the spread as NIfTI beside
    it."""
    if is_nifti_name(out):
        write_volume(result, out)
    else:
        from mr2ct_lib.images.dicom import write_dicom_series

        write_dicom_series(result, out, scan if scan.is_dir() else None, keep_patient)
    if spread is not None:
        write_volume(spread, with_ending(out, SPREAD), dtype=np.float32)


def side_files(out: Path, translators: int, qa: bool) -> list[Path]:
    """The files that are written beside the result `out`: the spread of several translators, the picture.

    >>> [path.name for path in side_files(Path("a/ct.nii.gz"), 2, True)]
    ['ct_spread.nii.gz', 'ct_qa.png']
    """
    return [*[with_ending(out, SPREAD)] * (translators > 1), *[with_ending(out, PICTURE)] * qa]


def synthesize_one(synthesis: Synthesis, scan: Path, out: Path) -> tuple[Volume, Volume | None]:
    """Read a scan, translate it and write the result, its spread and its picture; return result and spread."""
    check_encoding(scan)
    volume = read_volume(scan)
    try:
        result, spread = synthesis(volume)
    except InputError as error:
        raise InputError(f"{scan}: {error}") from error
    write_result(result, spread, scan, out, synthesis.keep_patient)
    if synthesis.qa:
        from mr2ct_lib.cli.qa import write_qa

        write_qa(volume, synthesis.translators[0], synthesis.reverse, with_ending(out, PICTURE))
    return result, spread


def synthesize_folder(
    synthesis: Synthesis, scans: dict[str, Path], out: Path, overwrite: bool, scheduler: str | None = None
) -> tuple[int, dict[str, str]]:
    """Translate every scan into the folder `out`; one that fails does not stop the others, finished ones are skipped.

    A result counts as finished when synthesis.json says that it was made of the scan as it is now, byte for byte.
    `scheduler` is the address of a Dask scheduler whose workers translate the scans (see `cores.run_jobs`). Returns the
    number of skipped scans, and name -> reason of failures. Raises InputError when `out` holds other things, one of the
    scans, or results of other translators, and when two scans would write one file.
    """
    record, path, places = synthesis.record(), out / RECORD, _places(synthesis, scans, out)
    check_folder(out, list(scans.values()), RECORD, overwrite=True)  # an earlier result is judged by its record
    if not path.exists() or overwrite:
        write_json(record, path)
    held = read_json(path)
    made = held.pop("scans", {}) if isinstance(held, dict) else {}  # name -> fingerprint of the scan it was made of
    if held != record or not isinstance(made, dict):
        raise InputError(
            f"{out}: holds results of other translators, of the other direction or of other options; expected a new "
            "folder. Choose another name, or add --overwrite to replace them"
        )
    scanned, results = {name: _fingerprint(scan) for name, scan in scans.items()}, {}
    for name, result in places.items():
        if made.get(name) is None or made[name] != scanned[name] or not _all_there(synthesis, result):
            results[name] = result
    taken, jobs = set(places.values()), []
    for name, result in results.items():
        old = [side.absolute() for side in side_files(result, 2, qa=True) if side not in taken]  # not another's result
        jobs.append((scans[name].absolute(), result.absolute(), old))
    outcomes = cores.run_jobs(_synthesize_listed, jobs, 1, scheduler, common=(synthesis,))
    failures, names = {}, list(results)
    for outcome in tqdm(outcomes, "synthesize", len(jobs), unit="scan", disable=None):
        name, error = names[outcome.number], outcome.error
        if error is None:
            speak(scans[name], outcome.value)
            made[name] = scanned[name]
            write_json({**record, "scans": dict(sorted(made.items()))}, path)
        elif scheduler is None and not isinstance(error, (InputError, OSError, MemoryError, UnicodeError)):
            raise error  # a defect of the program
        else:
            failures[name] = str(error) or type(error).__name__
    return len(scans) - len(results), failures


def _places(synthesis: Synthesis, scans: dict[str, Path], out: Path) -> dict[str, Path]:
    """Name -> where the result of a scan goes. Raises InputError when two scans would write one file."""
    places = {name: out / (name if synthesis.dicom else f"{name}.nii.gz") for name in scans}
    owners = {place: name for name, place in places.items()}
    for name, place in places.items():
        for side in side_files(place, len(synthesis.translators), synthesis.qa):
            if (other := owners.setdefault(side, name)) != name:
                raise InputError(
                    f"{side}: would be written for {scans[name]} and for {scans[other]}; expected a file of its own "
                    "for each. Rename one of the scans"
                )
    return places


def _synthesize_listed(synthesis: Synthesis, scan: Path, result: Path, sides: list[Path]) -> list[str]:
    """As `synthesize_one`, after an earlier result and its `sides` are removed, so that none is left where this one is
    refused; return the warnings."""
    for path in sides if synthesis.dicom else [result, *sides]:
        path.unlink(missing_ok=True)
    if synthesis.dicom and result.exists():
        check_series(result, [scan], overwrite=True)
        shutil.rmtree(result)
    with kept_warnings() as messages:
        synthesize_one(synthesis, scan, result)
    return messages


def _all_there(synthesis: Synthesis, result: Path) -> bool:
    """Say whether a result has all its files."""
    sides = side_files(result, len(synthesis.translators), synthesis.qa)
    return all(path.exists() for path in (result, *sides))


def _fingerprint(scan: Path) -> str | None:
    """A hash of the files of a scan, and of its voxels where they may lie in a file of another name; None where one
    cannot be read."""
    files = sorted(scan.rglob("*")) if scan.is_dir() else [scan]
    digest = hashlib.sha256()
    try:
        for path in files:
            if not path.is_dir():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        if not scan.is_dir() and scan.name.lower().endswith(META):
            with kept_warnings():  # they are spoken when the scan is translated
                digest.update(read_volume(scan).array.tobytes())
    except (OSError, InputError):
        return None
    return digest.hexdigest()


def _digest(folder: Path) -> str:
    """A fingerprint of a translator's files."""
    inner = folder / "translator" if (folder / "translator" / "translator.json").is_file() else folder
    digest = hashlib.sha256()
    for path in sorted(inner.glob("translator.json")) + sorted(inner.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
