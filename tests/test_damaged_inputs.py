"""Two hundred damaged or odd inputs: each is either read or refused in one sentence, soon and without much memory, and
a refused one leaves no image."""

import json
import resource
import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mr2ct_lib.cli import inspection, synthesizing
from mr2ct_lib.files import InputError
from mr2ct_lib.images.dicom import write_dicom_series
from mr2ct_lib.images.prepare import prepare
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import Volume, read_volume, write_volume
from mr2ct_lib.methods.training_data import describe_training_data
from mr2ct_lib.methods.translator import Architecture, Translator
from mr2ct_lib.patients.atlas import read_atlas

SEED, SHAPE = 20, (14, 12, 10)
BYTES = 2 * 2**30  # more memory than before
KINDS = {"nifti": 60, "metaimage": 30, "dicom": 40, "json": 30, "prepared": 20, "translator": 20}
ODD_NUMBERS = [np.nan, np.inf, -np.inf, 0, -1, 1e30, -1e30, 1e-30, 32767]
ODD_JSON = [None, -1, 0, 1e300, "", "nonsense", [], {}, [[]], {"1": None}, True]

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def scan(low: float) -> Volume:
    """A ball of tissue with a bright core in air."""
    x, y, z = (np.linspace(-1, 1, n) for n in SHAPE)
    radius = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    array = np.where(radius < 0.5, 300.0, np.where(radius < 0.9, 100.0 if low == 0 else 40.0, low))
    return Volume(array, np.diag([4.0, 4, 4, 1]), "HU" if low < 0 else "a.u.")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One sound input of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    write_volume(scan(0), folder / "scan.nii")
    write_volume(scan(0), folder / "cohort/source/m.nii")
    write_volume(scan(-1000), folder / "cohort/target/c.nii")
    sitk.WriteImage(sitk.GetImageFromArray(scan(0).array.astype(np.float32)), str(folder / "scan.mha"))
    write_dicom_series(scan(-1000), folder / "series")
    labels = (scan(0).array > 0).astype(np.uint8) * 2
    write_volume(Volume(labels, np.diag([4.0, 4, 4, 1]), "label"), folder / "labels.nii")
    (folder / "names.json").write_text('{"2": "femur"}')
    prepared = prepare(folder / "cohort", folder / "prepared", size=16, n4=False, progress=False, say=lambda _: None)
    translator = Translator(Architecture(4, 1, None, "resize"), PreparedSlices(prepared).preparation, {})
    translator.training_data = describe_training_data(translator, PreparedSlices(prepared))
    translator.save(folder / "translator")
    return folder


def damage_bytes(path, rng) -> str:
    """Truncate the file, flip bits in its header or anywhere, or overwrite a run of bytes; return what was done."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["truncated", "bits in the header", "bits anywhere", "a run of bytes", "empty", "doubled"],
                      p=[0.3, 0.3, 0.15, 0.15, 0.05, 0.05])  # fmt: skip
    if kind == "truncated":
        content = content[: rng.integers(len(content))]
    elif kind == "empty":
        content = b""
    elif kind == "doubled":
        content = content * 2
    elif kind == "a run of bytes":
        start = rng.integers(len(content))
        content[start : start + 16] = rng.bytes(len(content[start : start + 16]))
    else:
        end = min(348, len(content)) if kind == "bits in the header" else len(content)
        for place in rng.integers(end, size=8):
            content[place] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(content))
    return kind


def odd_values(path, rng) -> str:
    """Give some voxels, or the affine, of a NIfTI file values that no scanner writes."""
    volume = scan(0)
    odd = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
    array, affine = volume.array.astype(np.float32), volume.affine.copy()
    if rng.random() < 0.5:
        array[rng.random(array.shape) < rng.choice([0.01, 1.0])] = odd
    else:
        affine[rng.integers(3), rng.integers(4)] = odd
    nib.Nifti1Image(array, None).to_filename(path)
    header = nib.load(path).header
    header["srow_x"], header["srow_y"], header["srow_z"], header["sform_code"] = *affine[:3], 1
    path.write_bytes(header.binaryblock + b"\0" * 4 + array.tobytes(order="F"))
    return f"odd value {odd}"


def odd_json(path, rng) -> str:
    """Replace, remove or add an entry somewhere in a JSON file."""
    content = json.loads(path.read_text())
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[rng.integers(len(keys))]
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner and rng.random() < 0.7):
            break
        place = inner
    odd = ODD_JSON[rng.integers(len(ODD_JSON))]
    if rng.random() < 0.3:
        del place[key]
        said = f"{key} removed"
    else:
        place[key] = odd
        said = f"{key} is {odd!r}"
    path.write_text(json.dumps(content))
    return said


def use(kind: str, folder, out) -> None:
    """What the commands do with an input of this kind; an image goes to `out`."""
    if kind in ("nifti", "metaimage", "dicom"):
        path = {"nifti": folder / "scan.nii", "metaimage": folder / "scan.mha", "dicom": folder / "series"}[kind]
        inspection.describe(path)
        synthesis = synthesizing.load_synthesis([folder / "translator"], kind == "dicom")
        synthesizing.synthesize_one(synthesis, path, out)
        assert np.isfinite(read_volume(out).array).all()
    elif kind == "json":
        read_atlas((str(folder / "labels.nii"),), str(folder / "names.json"), ())
        prepare(folder / "cohort", out.parent / "prepared", size=16, n4=False, progress=False, say=lambda _: None)
    elif kind == "prepared":
        data = PreparedSlices(folder / "prepared")
        assert len(data.source) == sum(where.stop - where.start for _, where in data.patients("source"))
    else:
        synthesis = synthesizing.load_synthesis([folder / "translator"], False)
        synthesizing.synthesize_one(synthesis, folder / "scan.nii", out)


def spoil(kind: str, folder, rng) -> str:
    """Damage one file of a kind; return what was done."""
    if kind == "nifti":
        return odd_values(folder / "scan.nii", rng) if rng.random() < 0.4 else damage_bytes(folder / "scan.nii", rng)
    if kind == "metaimage":
        return damage_bytes(folder / "scan.mha", rng)
    if kind == "dicom":
        files = sorted((folder / "series").iterdir())
        return damage_bytes(files[rng.integers(len(files))], rng)
    if kind == "json":
        (folder / "cohort/cohort.json").write_text('{"anatomy": "own", "paired": false}')
        path = folder / ("names.json" if rng.random() < 0.5 else "cohort/cohort.json")
    else:
        other = {"prepared": "source.npy", "translator": "source_to_target.safetensors"}[kind]
        path = folder / kind / (other if rng.random() < 0.4 else f"{kind}.json")
    return odd_json(path, rng) if path.suffix == ".json" and rng.random() < 0.8 else damage_bytes(path, rng)


def peak_memory() -> int:
    """The largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_are_read_or_refused_in_a_sentence(kind, whole, tmp_path):
    rng, outcomes, before = np.random.default_rng([SEED, *kind.encode()]), Counter(), peak_memory()
    for number in range(KINDS[kind]):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        what, out = spoil(kind, folder, rng), folder / "out/ct.nii.gz"
        try:
            use(kind, folder, out)
            outcomes["read"] += 1
        except InputError as error:
            outcomes["refused"] += 1
            assert len(str(error).split()) > 5 and not list(folder.glob("out/*")), (number, what, str(error))
        except Exception as error:
            raise AssertionError(f"{kind} {number}, {what}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    assert outcomes["refused"] > KINDS[kind] / 10, outcomes
    assert peak_memory() - before < BYTES
