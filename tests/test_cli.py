"""The command line as a person uses it: the whole chain, and one sentence with exit code 2 for whatever cannot be
used."""

import json
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from commands import TINY, files

from mr2ct_lib import cli
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import read_volume
from mr2ct_lib.methods.runs import read_log

ROOT = Path(__file__).parents[1]


# ---- what works


def test_a_scan_becomes_a_ct_on_its_own_grid_and_back(chain, mr2ct, tmp_path):
    mr, ct, back = chain / "cohort/source/s0001.nii.gz", tmp_path / "new folder/ct.nii.gz", tmp_path / "back.nii"
    code, out, _ = mr2ct("synthesize", chain / "run/translator", mr, "--out", ct)
    assert code == 0 and str(ct) in out and "HU" in out
    given, made = nib.load(mr), nib.load(ct)
    assert made.shape == given.shape and made.get_data_dtype() == np.int16
    np.testing.assert_array_equal(made.affine, given.affine)
    code, out, _ = mr2ct("synthesize", chain / "run", chain / "cohort/target/t0001.nii.gz", "--out", back, "--reverse")
    assert code == 0 and read_volume(back).unit == "%"


def test_evaluate_prints_a_table_or_json(chain, mr2ct, tmp_path):
    ct = chain / "cohort/target/t0001.nii.gz"
    image = nib.load(ct)
    shifted = np.clip(image.get_fdata(), -150, 340) + 10
    nib.save(nib.Nifti1Image(shifted.astype(np.int16), image.affine), tmp_path / "made.nii.gz")
    mask = np.zeros(image.shape, np.uint8)
    mask[(image.get_fdata() > -100) & (image.get_fdata() < 300)] = 1
    nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "mask.nii.gz")
    words = ["evaluate", tmp_path / "made.nii.gz", ct, "--mask", tmp_path / "mask.nii.gz"]
    code, out, _ = mr2ct(*words, "--json")
    values = json.loads(out)
    assert code == 0 and values["unit"] == "HU"
    assert values["MAE (HU)"] == pytest.approx(10) and values["MSE (HU squared)"] == pytest.approx(100)
    clipped = "clipped to [-150, 350] HU"
    assert values[f"PSNR (dB, range 500, {clipped})"] == pytest.approx(20 * np.log10(500 / 10))
    assert values[f"MAE (grey levels of 255, {clipped})"] == pytest.approx(5.1)
    assert values["SynthRAD"]["PSNR (dB)"] == pytest.approx(20 * np.log10(4024 / 10))
    code, out, _ = mr2ct(*words)
    assert code == 0 and re.search(r"MAE \(HU\) +10\b", out)


def test_an_mr_is_compared_in_the_unit_of_the_synthetic_one(chain, mr2ct, tmp_path):
    mr = read_volume(chain / "cohort/source/s0001.nii.gz")
    from mr2ct_lib.images.intensity import normalise_mr
    from mr2ct_lib.images.volumes import write_volume

    write_volume(normalise_mr(mr, "zscore"), tmp_path / "made.nii.gz")
    louder = mr.replace(array=mr.array * 7)  # another gain: the same image
    write_volume(louder, tmp_path / "truth.nii.gz")
    code, out, _ = mr2ct("evaluate", tmp_path / "made.nii.gz", tmp_path / "truth.nii.gz", "--json")
    assert code == 0 and json.loads(out)["unit"] == "SD" and json.loads(out)["MAE (SD)"] < 1e-5


def test_a_z_scored_mr_is_lifted_before_it_is_compared_in_percent(chain, mr2ct, tmp_path):
    """As `prepare` lifts it, so that its air is black."""
    mr = read_volume(chain / "cohort/source/s0001.nii.gz")
    from mr2ct_lib.images.intensity import normalise_mr
    from mr2ct_lib.images.volumes import write_volume

    write_volume(normalise_mr(mr, "percentile"), tmp_path / "made.nii.gz")
    write_volume(mr.replace(array=(mr.array - mr.array.mean()) / mr.array.std()), tmp_path / "truth.nii.gz")
    code, out, _ = mr2ct("evaluate", tmp_path / "made.nii.gz", tmp_path / "truth.nii.gz", "--json")
    assert code == 0 and json.loads(out)["unit"] == "%" and json.loads(out)["MAE (%)"] < 1
    said = [mr2ct("inspect", path)[1] for path in (chain / "cohort/source/s0001.nii.gz", tmp_path / "truth.nii.gz")]
    body = [int(re.search(r"body\s+(\d+)%", text)[1]) for text in said]
    assert abs(body[0] - body[1]) <= 1


def test_training_goes_on_where_it_stopped(chain, mr2ct, tmp_path):
    words = [
        "train",
        "dicyclegan",
        "--data",
        chain / "prepared",
        "--out",
        tmp_path / "run",
        *TINY,
        "--set",
        "iterations=2",
    ]
    code, out, _ = mr2ct(*words)
    assert code == 0 and str(tmp_path / "run/translator") in out
    shutil.rmtree(tmp_path / "run/translator")
    assert mr2ct(*words, "--resume")[0] == 0
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run/translator/translator.json").is_file()


def test_an_mr_is_segmented_through_its_synthetic_ct(chain, mr2ct, tmp_path):
    words = [
        "segment",
        "train",
        chain / "run/translator",
        chain / "prepared",
        "--out",
        tmp_path / "seg",
        "--iterations",
        1,
    ]
    code, out, _ = mr2ct(*words)
    assert code == 0 and " of 22 named structures" in out and str(tmp_path / "seg") in out
    record = json.loads((chain / "run/translator/translator.json").read_text())
    record["preparation"]["plane"] = "axial"  # a translator of other slices than the U-Net learned from
    shutil.copytree(chain / "run/translator", tmp_path / "axial")
    (tmp_path / "axial/translator.json").write_text(json.dumps(record))
    words = ["segment", "apply", tmp_path / "seg", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "x.nii.gz"]
    refused(mr2ct(*words, "--translator", tmp_path / "axial"), "segmenter: its plane is coronal")
    mr, labels = chain / "cohort/source/s0001.nii.gz", tmp_path / "labels.nii.gz"
    code, out, _ = mr2ct(
        "segment", "apply", tmp_path / "seg", mr, "--translator", chain / "run/translator", "--out", labels
    )
    assert code == 0 and "gluteus_maximus" in out
    assert nib.load(labels).shape == nib.load(mr).shape
    assert json.loads((tmp_path / "labels_names.json").read_text())["1"] == "pelvis"


def test_a_label_map_takes_the_anatomys_place(mr2ct, tmp_path):
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[8:32, 8:32, 4:36], labels[15:25, 15:25, 4:36] = 1, 2
    nib.save(nib.Nifti1Image(labels, np.diag([4, 4, 4, 1])), tmp_path / "map.nii.gz")
    (tmp_path / "names.json").write_text('{"1": "gluteus_maximus", "2": "femur"}')
    words = [
        "cohort",
        "hip",
        "--labels",
        tmp_path / "map.nii.gz",
        "--names",
        tmp_path / "names.json",
        "--patients",
        1,
        "--paired",
    ]
    code, out, _ = mr2ct(*words, "--out", tmp_path / "cohort")
    assert code == 0 and out.startswith("1 source and 1 target scan in")
    ct, where = (read_volume(tmp_path / f"cohort/{kind}/p0001.nii.gz").array for kind in ("target", "labels"))
    assert ct.max() > 500 and ct.min() < -900 and {1, 2} <= set(np.unique(where))


def test_the_module_is_the_command_and_says_what_is_wrong(tmp_path):
    words = [sys.executable, "-m", "mr2ct_lib.cli", "synthesize", "nowhere", "scan.nii.gz", "--out", "ct.nii.gz"]
    done = subprocess.run(
        words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("mr2ct: scan.nii.gz: does not exist") and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


# ---- help and texts


def commands(group=None, words=()):
    """(words, command) of every command."""
    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def parse(line: str) -> None:
    """Parse `mr2ct ...` without running it; a click error when a word is unknown or missing."""
    line, command = line.split("#")[0].strip(), typer.main.get_command(cli.app)
    name, *words = shlex.split(line)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(name, words)


@pytest.mark.parametrize(
    "words, command", list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_help_shows_an_example_that_parses(words, command, mr2ct):
    assert command.epilog.startswith(f"Example: mr2ct {' '.join(words)} ")
    parse(command.epilog.removeprefix("Example: "))
    code, out, _ = mr2ct(*words, "--help")
    assert (
        code == 0
        and "Example: mr2ct" in out
        and all(parameter.help for parameter in command.params if parameter.name != "help")
    )


def texts() -> Iterator[Path]:
    """The pages and notebooks whose text shows commands of mr2ct in a block of code."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    return (page for page in pages if shown_commands(page))


def shown_commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    shell = [block for language, block in blocks if language in ("", "bash", "console", "sh")]
    lines = [line.strip() for block in shell for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match("mr2ct [a-z]+ ", line)]


@pytest.mark.parametrize("page", list(texts()), ids=lambda page: page.name)
def test_every_command_in_the_texts_parses(page):
    for line in shown_commands(page):
        parse(line)


def test_commands_are_found_in_the_texts():
    pages = {page.name for page in texts()}
    assert pages >= {"README.md", "own_data.md", "engine.md", "cluster.md", "when_not_to_trust.md"}
    assert pages >= {"00_start_here.ipynb", "06_segmentation.ipynb"}


# ---- bad input


def image(path: Path, array, affine=None) -> Path:
    nib.save(nib.Nifti1Image(np.asarray(array), np.diag([5.0, 5, 5, 1]) if affine is None else affine), path)
    return path


def noise(shape=(8, 8, 8)) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def text(path: Path) -> Path:
    path.write_text("no image")
    return path


def singular(path: Path) -> Path:
    scan = nib.Nifti1Image(noise(), None)
    scan.header["sform_code"], scan.header["srow_x"] = 1, [0, 0, 0, 0]
    nib.save(scan, path)
    return path


def with_value(value: float):
    def make(path: Path) -> Path:
        array = noise()
        array[2, 3, 4] = value
        return image(path, array)

    return make


BAD_SCANS = {
    "missing": (lambda path: path, "does not exist"),
    "not an image": (text, "not a readable NIfTI"),
    "4D": (lambda path: image(path, noise((4, 4, 4, 3))), "expected a 3D volume"),
    "NaN": (with_value(np.nan), "NaN or infinite"),
    "infinite": (with_value(np.inf), "NaN or infinite"),
    "singular affine": (singular, "singular"),
    "constant": (lambda path: image(path, np.ones((4, 4, 4), np.float32)), "every voxel is 1"),
}


def refused(result: tuple[int, str, str], words: str) -> str:
    """Exit code 2, nothing on stdout, one sentence on stderr, with an indented line per failure, that holds `words`;
    returns it."""
    code, out, err = result
    assert code == 2 and out == "", (code, out, err)
    first, *listed = err.splitlines()
    assert first.startswith("mr2ct: ") and all(line.startswith("  ") for line in listed) and "Traceback" not in err, err
    assert words in err, err
    return err


@pytest.mark.parametrize("case", BAD_SCANS)
@pytest.mark.parametrize("command", ["synthesize", "segment apply", "evaluate", "evaluate truth", "prepare"])
def test_a_bad_scan_is_named_and_nothing_is_written(case, command, chain, mr2ct, tmp_path):
    (tmp_path / "own/source").mkdir(parents=True)
    (tmp_path / "own/target").mkdir()
    make, words = BAD_SCANS[case]
    bad = make(tmp_path / "own/source/bad.nii.gz")
    good = chain / "cohort/target/t0001.nii.gz"
    shutil.copy(good, tmp_path / "own/target/good.nii.gz")
    run = {
        "synthesize": ["synthesize", chain / "run/translator", bad, "--out", tmp_path / "out.nii.gz"],
        "segment apply": [
            "segment",
            "apply",
            _segmenter(chain),
            bad,
            "--translator",
            chain / "run",
            "--out",
            tmp_path / "out.nii.gz",
        ],
        "evaluate": ["evaluate", bad, good],
        "evaluate truth": ["evaluate", good, bad],
        "prepare": ["prepare", tmp_path / "own", "--out", tmp_path / "out"],
    }[command]
    before = files(tmp_path)
    if (command, case) == ("prepare", "missing"):
        words = "holds no scans"
    assert "bad.nii.gz" in refused(mr2ct(*run), words) or words == "holds no scans"
    assert files(tmp_path) == before


def _segmenter(chain: Path) -> Path:
    from mr2ct_lib.methods.segmentation import Segmenter, build_network, save_segmenter

    if not (chain / "seg").exists():
        network = build_network(2, 2, (2, 4))
        save_segmenter(Segmenter(network, {1: "femur"}, ("MR", "CT"), (2, 4), {}), chain / "seg")
    return chain / "seg"


def _own(tmp_path: Path, source: Path, target: Path) -> Path:
    for domain, path in (("source", source), ("target", target)):
        (tmp_path / "own" / domain).mkdir(parents=True)
        shutil.copy(path, tmp_path / "own" / domain)
    return tmp_path / "own"


def _maps(tmp_path: Path, names: dict[str, str]) -> list:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:9, 3:9, 3:9], labels[5:7, 5:7, 5:7] = 1, 2
    (tmp_path / "names.json").write_text(json.dumps(names))
    return ["--labels", image(tmp_path / "map.nii.gz", labels), "--names", tmp_path / "names.json"]


HIP = ["cohort", "hip", "--out", "OUT", "--patients"]
TRAIN = ["train", "cyclegan", "--data", "CHAIN/prepared", "--out", "OUT"]
REFUSALS = {  # name: (words, with OUT, TMP and CHAIN in place of folders, what stderr says)
    "no patients": ([*HIP, "0"], "at least 1"),
    "negative patients": ([*HIP, "-3"], "at least 1"),
    "negative seed": ([*HIP, "1", "--seed", "-1"], "seed"),
    "anatomy": (["cohort", "knee", "--out", "OUT"], "expected one of hip, head, head_t1, abdomen"),
    "cohort profile": ([*HIP, "1", "--profile", "fast"], "profile"),
    "names alone": ([*HIP, "1", "--names", "TMP/names.json"], "labels and names together"),
    "missing labels": ([*HIP, "1", "--labels", "TMP/no.nii.gz", "--names", "TMP/names.json"], "does not exist"),
    "another cohort there": (
        ["cohort", "hip", "--out", "CHAIN/cohort", "--patients", "2", "--seed", "5", "--profile", "coarse"],
        "another seed",
    ),
    "missing cohort": (["prepare", "TMP/nowhere", "--out", "OUT"], "does not exist"),
    "empty cohort": (["prepare", "TMP/empty", "--out", "OUT"], "holds no scans"),
    "prepare profile": (["prepare", "CHAIN/cohort", "--out", "OUT", "--profile", "fast"], "profile"),
    "prepare plane": (["prepare", "CHAIN/cohort", "--out", "OUT", "--plane", "oblique"], "plane"),
    "prepare size": (["prepare", "CHAIN/cohort", "--out", "OUT", "--size", "3"], "size"),
    "window upside down": (["prepare", "CHAIN/cohort", "--out", "OUT", "--window", "350", "-150"], "350"),
    "negative size": (["prepare", "CHAIN/cohort", "--out", "OUT", "--size", "-64"], "size"),
    "prepare over other things": (["prepare", "CHAIN/cohort", "--out", "CHAIN/run"], "holds other things"),
    "method": (
        ["train", "pix2pix", "--data", "CHAIN/prepared", "--out", "OUT"],
        "expected one of cyclegan, dicyclegan",
    ),
    "train profile": ([*TRAIN, "--profile", "fast"], "expected one of quick"),
    "unknown setting": ([*TRAIN, "--set", "lamda_gc=1"], "did you mean 'lambda_gc'"),
    "setting without value": ([*TRAIN, "--set", "lambda_gc"], "name=value"),
    "setting of another type": ([*TRAIN, "--set", "iterations=many"], "expected int"),
    "setting with a place of its own": ([*TRAIN, "--set", "seed=3"], "--seed"),
    "setting of the other method": ([*TRAIN, "--set", "lambda_align=1"], "does nothing with method cyclegan"),
    "steps and epochs": ([*TRAIN, "--set", "epochs=1", "--set", "iterations=5"], "expected one of them"),
    "device": ([*TRAIN, "--device", "tpu"], "expected one of auto, cpu, cuda"),
    "batch larger than a domain": ([*TRAIN, "--set", "batch_size=99"], "expected at least a batch of 99"),
    "discriminators that see too far": ([*TRAIN, "--set", "discriminator_layers=6"], "expected at least 192"),
    "run below a file": (
        ["train", "cyclegan", "--data", "CHAIN/prepared", "--out", "CHAIN/prepared/source.npy/run"],
        "cannot be written",
    ),
    "negative training seed": ([*TRAIN, "--seed", "-1"], "seed=-1"),
    "no prepared data": (["train", "cyclegan", "--data", "TMP/empty", "--out", "OUT"], "no prepared.json"),
    "fewer patients than asked": ([*TRAIN, "--set", "patients=9"], "expected 9"),
    "run folder in use": (["train", "cyclegan", "--data", "CHAIN/prepared", "--out", "CHAIN/run", *TINY], "--resume"),
    "resume another run": (
        [
            "train",
            "cyclegan",
            "--data",
            "CHAIN/prepared",
            "--out",
            "CHAIN/run",
            *TINY,
            "--set",
            "lambda_gc=0.7",
            "--resume",
        ],
        "the run's own settings",
    ),
    "run over other things": (
        ["train", "cyclegan", "--data", "CHAIN/prepared", "--out", "CHAIN/cohort"],
        "holds something else",
    ),
    "no translator": (
        ["synthesize", "TMP/empty", "CHAIN/cohort/source/s0001.nii.gz", "--out", "OUT.nii.gz"],
        "is no folder of a translator",
    ),
    "CT for MR": (["synthesize", "CHAIN/run", "CHAIN/cohort/target/t0001.nii.gz", "--out", "OUT.nii.gz"], "--reverse"),
    "MR for CT": (
        ["synthesize", "CHAIN/run", "CHAIN/cohort/source/s0001.nii.gz", "--out", "OUT.nii.gz", "--reverse"],
        "expected CT",
    ),
    "other grids": (
        ["evaluate", "CHAIN/cohort/target/t0001.nii.gz", "TMP/other_ct.nii.gz"],
        "another grid",
    ),
    "MR against CT": (["evaluate", "TMP/mr.nii.gz", "CHAIN/cohort/target/t0001.nii.gz"], "two scans of one kind"),
    "empty mask": (
        [
            "evaluate",
            "CHAIN/cohort/target/t0001.nii.gz",
            "CHAIN/cohort/target/t0001.nii.gz",
            "--mask",
            "TMP/nothing.nii.gz",
        ],
        "marks no voxel",
    ),
    "mask of another grid": (
        [
            "evaluate",
            "CHAIN/cohort/target/t0001.nii.gz",
            "CHAIN/cohort/target/t0001.nii.gz",
            "--mask",
            "CHAIN/cohort/labels/s0001.nii.gz",
        ],
        "another grid",
    ),
    "no segmenter": (
        [
            "segment",
            "apply",
            "TMP/empty",
            "CHAIN/cohort/source/s0001.nii.gz",
            "--translator",
            "CHAIN/run",
            "--out",
            "OUT.nii.gz",
        ],
        "segmenter.json",
    ),
    "U-Net over other things": (
        ["segment", "train", "CHAIN/run", "CHAIN/prepared", "--out", "CHAIN/cohort"],
        "holds other things",
    ),
    "no iterations": (
        ["segment", "train", "CHAIN/run", "CHAIN/prepared", "--out", "OUT", "--iterations", "0"],
        "iterations",
    ),
    "U-Net size": (["segment", "train", "CHAIN/run", "CHAIN/prepared", "--out", "OUT", "--size", "huge"], "size"),
    "U-Net rate": (
        ["segment", "train", "CHAIN/run", "CHAIN/prepared", "--out", "OUT", "--learning-rate", "-1"],
        "learning_rate",
    ),
    "U-Net seed": (["segment", "train", "CHAIN/run", "CHAIN/prepared", "--out", "OUT", "--seed", "-1"], "seed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_done_is_said_in_one_sentence(case, chain, mr2ct, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.json").write_text("{}")
    ct = nib.load(chain / "cohort/target/t0001.nii.gz")
    image(tmp_path / "mr.nii.gz", noise(ct.shape), ct.affine)
    image(tmp_path / "other_ct.nii.gz", np.asarray(ct.dataobj)[1:], ct.affine)
    image(tmp_path / "nothing.nii.gz", np.zeros(ct.shape, np.uint8), ct.affine)
    words, says = REFUSALS[case]
    before = files(tmp_path), files(chain)
    filled = [
        word.replace("OUT", str(tmp_path / "out")).replace("TMP", str(tmp_path)).replace("CHAIN", str(chain))
        for word in words
    ]
    refused(mr2ct(*filled), says)
    assert (files(tmp_path), files(chain)) == before


def test_a_gpu_that_is_not_there_is_named(chain, mr2ct, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = ["train", "cyclegan", "--data", chain / "prepared", "--out", tmp_path / "run", "--device", "cuda"]
    refused(mr2ct(*words), "sees no GPU here; take --device cpu")
    assert files(tmp_path) == {}


def test_a_batch_that_processes_cannot_share_is_said_by_one_of_them(chain, mr2ct, tmp_path, monkeypatch):
    words = ["train", "cyclegan", "--data", chain / "prepared", "--out", tmp_path / "run"]
    for name, value in {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    refused(mr2ct(*words), "batch_size=1 cannot be shared by 3 processes; expected a multiple of 3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert mr2ct(*words) == (2, "", "")
    assert files(tmp_path) == {}


def test_a_port_that_is_in_use_is_named(chain, mr2ct, tmp_path):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        launcher = f"--nnodes 2 --node-rank 0 --master-addr localhost --master-port {port} --nproc-per-node 1"
        words = ["train", "cyclegan", "--data", chain / "prepared", "--out", tmp_path / "run", "--torchrun", launcher]
        refused(mr2ct(*words), f"localhost:{port}: the port is in use by another program; choose another --master-port")
    assert files(tmp_path) == {}


def test_label_maps_need_a_name_for_each_value_and_a_tissue_for_each_name(mr2ct, tmp_path):
    for names, says in (({"1": "femur"}, "2"), ({"1": "femur", "2": "banana"}, "banana"), ({"one": "femur"}, "one")):
        words = [*_maps(tmp_path, names), "--patients", 1, "--out", tmp_path / "out"]
        before = files(tmp_path)
        refused(mr2ct("cohort", "hip", *words), says)
        assert files(tmp_path) == before


def test_swapped_folders_are_noticed(chain, mr2ct, tmp_path):
    own = _own(tmp_path, chain / "cohort/target/t0001.nii.gz", chain / "cohort/source/s0001.nii.gz")
    before = files(tmp_path)
    refused(mr2ct("prepare", own, "--out", tmp_path / "out"), "Exchange the two folders")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["ct.txt", "ct", "ct.nii.gz.png"])
def test_an_output_that_is_no_nifti_is_refused_before_the_work(name, chain, mr2ct, tmp_path, monkeypatch):
    scan = chain / "cohort/source/s0001.nii.gz"
    for words in (
        ["synthesize", chain / "run", scan],
        ["segment", "apply", _segmenter(chain), scan, "--translator", chain / "run"],
    ):
        monkeypatch.setattr("mr2ct_lib.images.volumes.read_volume", lambda *_: pytest.fail("work was begun"))
        refused(mr2ct(*words, "--out", tmp_path / name), "expected .nii or .nii.gz")
        assert files(tmp_path) == {}


def test_translators_and_checkpoints_of_another_architecture_are_named(chain, mr2ct, tmp_path):
    shutil.copytree(chain / "run", tmp_path / "run")
    record = json.loads((tmp_path / "run/translator/translator.json").read_text())
    record["architecture"]["filters"] = 8
    (tmp_path / "run/translator/translator.json").write_text(json.dumps(record))
    before = files(tmp_path)
    scan = chain / "cohort/source/s0001.nii.gz"
    refused(mr2ct("synthesize", tmp_path / "run", scan, "--out", tmp_path / "ct.nii.gz"), "another architecture")
    assert files(tmp_path) == before
    shutil.rmtree(tmp_path / "run/translator")  # with it the run counts as finished
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["settings"]["filters"] = 8
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    before = files(tmp_path)
    words = [
        "train",
        "cyclegan",
        "--data",
        chain / "prepared",
        "--out",
        tmp_path / "run",
        *TINY,
        "--set",
        "iterations=2",
    ]
    refused(mr2ct(*words, "--set", "filters=8", "--resume"), "another architecture")
    assert files(tmp_path) == before


def test_labelled_slices_unlike_the_translators_are_refused(chain, mr2ct, tmp_path):
    shutil.copytree(chain / "prepared", tmp_path / "prepared")
    meta = json.loads((tmp_path / "prepared/prepared.json").read_text())
    meta["preparation"]["windows"]["target"]["high"] = 1500.0
    (tmp_path / "prepared/prepared.json").write_text(json.dumps(meta))
    words = ["segment", "train", chain / "run", tmp_path / "prepared", "--out", tmp_path / "seg"]
    refused(mr2ct(*words), "its target window is -150 to 1500 HU, the translator's -150 to 350 HU")
    labels = tmp_path / "prepared/labels_target.npy"
    np.save(labels, np.zeros_like(np.load(labels)))
    refused(mr2ct(*words), "none of its labels is above 0")
    assert not (tmp_path / "seg").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["cohort", "hip"],
        ["cohort", "hip", "--out", "x", "--wings", "2"],
        ["cohort", "hip", "--patients", "two", "--out", "x"],
    ],
    ids=" ".join,
)
def test_words_that_no_command_knows_end_with_2(words, mr2ct, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = mr2ct(*words)
    assert code == 2 and out == "" and "Error" in err and files(tmp_path) == {}


@pytest.fixture
def small_disk(monkeypatch):
    """A disk on which no file can grow beyond a few bytes: every real writer meets a real OSError (EFBIG here, ENOSPC
    on a full one)."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a .pyc cut at the limit would break every later import
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # of the processes that are started, too
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "words, limit",
    [
        (["cohort", "hip", "--patients", "1", "--paired", "--out", "TMP/out"], 2000),
        (["prepare", "CHAIN/cohort", "--out", "TMP/out"], 20_000),
        (["train", "cyclegan", "--data", "CHAIN/prepared", "--out", "TMP/out", *TINY, "--set", "iterations=1"], 20_000),
        (["segment", "train", "CHAIN/run", "CHAIN/prepared", "--out", "TMP/out", "--iterations", "1"], 20_000),
        (["synthesize", "CHAIN/run", "CHAIN/cohort/source/s0001.nii.gz", "--out", "TMP/out.nii.gz"], 2000),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_full_disk_is_said_and_no_file_is_half_written(words, limit, chain, mr2ct, tmp_path, small_disk):
    filled = [word.replace("TMP", str(tmp_path)).replace("CHAIN", str(chain)) for word in words]
    small_disk(limit)
    refused(mr2ct(*filled), "free some space")
    left = [name for name in files(tmp_path) if (tmp_path / name).is_file()]
    # what is whole may stay, so that the same command goes on from it
    assert set(left) <= {"out/cohort.json", "out/config.json", "out/log.jsonl"}


def test_a_full_disk_leaves_the_old_result_whole(chain, mr2ct, tmp_path, small_disk):
    words = ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "ct.nii.gz"]
    assert mr2ct(*words)[0] == 0
    before = files(tmp_path)
    small_disk(2000)
    refused(mr2ct(*words), "ct.nii.gz")
    assert files(tmp_path) == before


def test_prepared_slices_hold_what_the_command_says(chain, mr2ct, tmp_path):
    code, out, _ = mr2ct("prepare", chain / "cohort", "--out", tmp_path / "p", "--size", 32, "--plane", "coronal")
    slices = PreparedSlices(tmp_path / "p")
    assert code == 0 and f"{len(slices.target)} target slices of 32 x 32 pixels in {tmp_path / 'p'}" in out
