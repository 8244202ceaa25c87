"""Laws of unpacking, of single cases out of a remote zip, and of the `get` command around them."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hostile_server import make_tar, make_zip, serving
from typer.testing import CliRunner

from data_download import __main__ as command
from data_download import archives, registry, transfer
from data_download.registry import DataSet, Remote
from mr2ct_lib.files import InputError

BODY = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serving(BODY) as http:
        yield http


def whole_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and ".part" not in path.name)


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar"])
def test_unpacking_gives_the_members_and_a_mark(tmp_path, make: Callable[..., bytes]):
    archive = tmp_path / "x"
    archive.write_bytes(make({"a/b.txt": b"one", "./c.txt": b"two"}))
    archives.unpack(archive, Remote("http://x/x"), tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"one"
    assert whole_files(tmp_path / "out") == ["b.txt", "c.txt", archives.MARK]


def linked_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        opened.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def twice(kind: str) -> bytes:
    """An archive with two members of one name."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as opened, pytest.warns(UserWarning, match="Duplicate name"):
            for content in ("one", "two"):
                opened.writestr("a/b.nii", content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as opened:
            for _ in range(2):
                opened.addfile(tarfile.TarInfo("a/b.nii"))
    return buffer.getvalue()


UNSAFE = {
    f"{make.__name__}-{where}": lambda make=make, bad=bad: make({"good": b"1", bad: b"2"})
    for make in (make_zip, make_tar)
    for where, bad in {"above": "../evil", "inside-above": "a/../../evil", "absolute": "/evil"}.items()
} | {
    "backslash": lambda: make_zip({"..\\evil": b""}),
    "drive": lambda: make_zip({"C:/evil": b""}),
    "tar-link-out": lambda: make_tar({"good": b"1"}, link="../outside"),
    "tar-link-in": lambda: make_tar({"good": b"1"}, link="good"),
    "zip-link": linked_zip,
    "tar-cut": lambda: make_tar({"good": BODY})[:-1000],
    "zip-cut": lambda: make_zip({"good": BODY})[:-1000],
    "zip-damaged": lambda: make_zip({"good": BODY}).replace(BODY[:50], bytes(50)),
    "no-archive": lambda: b"no archive",
}
CLASHING = {
    "zip-twice": lambda: twice("zip"),
    "tar-twice": lambda: twice("tar"),
    "zip-file-and-folder": lambda: make_zip({"a": b"1", "a/b": b"2"}),
    "zip-folder-and-file": lambda: make_zip({"a/b": b"1", "a": b"2"}),
    "tar-file-and-folder": lambda: make_tar({"a": b"1", "a/b": b"2"}),
}


@pytest.mark.parametrize("name", [*UNSAFE, *CLASHING])
def test_unsafe_damaged_or_clashing_archives_leave_nothing(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = inside / "x"
    archive.write_bytes((UNSAFE | CLASHING)[name]())
    with pytest.raises(InputError, match="clashes with another one" if name in CLASHING else "x") as caught:
        archives.unpack(archive, Remote("http://x/x", checksum="md5:0"), inside / "out")
    assert "\n" not in str(caught.value)
    assert [p.name for p in inside.iterdir()] == ["x"] and [p.name for p in tmp_path.iterdir()] == ["inside"]


@pytest.fixture
def synthrad(server, monkeypatch) -> DataSet:
    cases = [f"Task1/pelvis/1PA{i:03d}/{kind}.nii.gz" for i in range(1, 13) for kind in ("mr", "ct", "mask")]
    server.body = make_zip({name: name.encode() + BODY[:20_000] for name in cases})
    md5 = "md5:" + hashlib.md5(server.body).hexdigest()
    files = (Remote(server.url + "Task1.zip", "", len(server.body), md5),)
    data = DataSet("test", "none", "nowhere", files, layout="synthrad2023")
    monkeypatch.setitem(registry.DATASETS, "synthrad2023", data)
    return data


def test_single_cases_come_without_the_whole_zip(server, synthrad, tmp_path):
    (place,) = archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA002"])
    assert place == tmp_path / "Task1/pelvis/1PA002"
    assert whole_files(tmp_path) == ["ct.nii.gz", "mask.nii.gz", "mr.nii.gz"]
    assert (place / "ct.nii.gz").read_bytes() == b"Task1/pelvis/1PA002/ct.nii.gz" + BODY[:20_000]
    assert all("Range" in r for r in server.requests)
    with pytest.raises(InputError, match=r"1PA9.*1PA001"):
        archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA9"])


@pytest.mark.parametrize("form", ["./{}", "Task1/./{}", "Task1//{}", "Task1\\{}"])
def test_a_case_lands_in_its_place_however_the_zip_spells_its_path(form, server, synthrad, tmp_path):
    names = [form.format(name) for name in ("1PA001/mr.nii.gz", "1PA001/deep/ct.nii.gz", "1PA002/mr.nii.gz")]
    server.body = make_zip({name: name.encode() for name in names})
    remote = Remote(server.url + "Task1.zip", "", len(server.body), None)
    (place,) = archives.unpack_cases(remote, tmp_path, ["1PA001"])
    assert place == tmp_path / ("1PA001" if form == "./{}" else "Task1/1PA001")
    assert (place / "mr.nii.gz").read_bytes() == names[0].encode()
    assert (place / "deep/ct.nii.gz").read_bytes() == names[1].encode()
    assert whole_files(tmp_path) == ["ct.nii.gz", "mr.nii.gz"]


def test_a_folder_of_cases_is_completed_when_some_of_them_are_there(server, synthrad, tmp_path):
    archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA002"])
    (kept,) = tmp_path.glob("**/1PA002/mr.nii.gz")
    number = kept.stat().st_ino
    archives.unpack_cases(synthrad.remotes[0], tmp_path, ["pelvis"])
    assert len(list(tmp_path.glob("Task1/pelvis/*/mr.nii.gz"))) == 12 and kept.stat().st_ino == number


def test_single_cases_survive_fifty_random_cuts_in_one_start(server, synthrad, tmp_path):
    server.script = ["random cut"] * 50
    cases = [f"1PA{number:03d}" for number in range(1, 13)]
    for place in archives.unpack_cases(synthrad.remotes[0], tmp_path, cases):
        assert (place / "mr.nii.gz").read_bytes() == f"Task1/pelvis/{place.name}/mr.nii.gz".encode() + BODY[:20_000]
    assert len(server.requests) > 50 and len(whole_files(tmp_path)) == 36


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (["whole"] * 3, "single cases"),
        (["cut"] + ["404"] * 2, "answers 404"),
        (["portal"] * 3, "a web page instead"),
        (["", "cut", *["shifted"] * 6], "another part than was asked for, 6 attempts"),
    ],
    ids=["no-ranges", "gone", "portal", "wrong-parts"],
)
def test_single_cases_are_whole_or_absent(server, synthrad, tmp_path, script, words):
    server.script = script
    with pytest.raises(InputError, match=words):
        archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA002"])
    assert whole_files(tmp_path) == []


def run(*arguments: object):
    return CliRunner().invoke(command.app, [str(one) for one in arguments])


def test_get_brings_unpacks_arranges_and_does_not_come_twice(server, synthrad, tmp_path):
    first = run("get", "synthrad2023", "--to", tmp_path)
    assert first.exit_code == 0, first.output
    assert f"next: mr2ct prepare {tmp_path}/synthrad2023/cohort/pelvis/unpaired" in first.output
    sides = [tmp_path / f"synthrad2023/cohort/pelvis/unpaired/{side}" for side in ("source", "target")]
    source, target = ({path.name for path in side.iterdir()} for side in sides)
    assert source and target and not source & target
    for side, kind in zip(sides, ("mr", "ct"), strict=True):
        one = sorted(side.iterdir())[0]
        assert f"{one.name.removesuffix('.nii.gz')}/{kind}".encode() in one.read_bytes()
    assert not list((tmp_path / "downloads").rglob("*.zip"))
    before = len(server.requests)
    assert run("get", "synthrad2023", "--to", tmp_path).exit_code == 0 and len(server.requests) == before


def test_cases_that_are_there_do_not_pass_for_the_whole_set(server, synthrad, tmp_path):
    assert run("get", "synthrad2023", "--to", tmp_path, "--case", "1PA001").exit_code == 0
    assert run("get", "synthrad2023", "--to", tmp_path).exit_code == 0
    assert len(list((tmp_path / "synthrad2023/Task1/pelvis").iterdir())) == 12


def test_label_maps_come_with_their_names(server, monkeypatch, tmp_path):
    path = "Pelvic-Ref-001/label.mhd"
    md5 = "md5:" + hashlib.md5(BODY).hexdigest()
    files = (Remote(server.url + path, path, len(BODY), md5, archive=False),)
    hips = registry.DATASETS["hip-labels"]
    monkeypatch.setitem(registry.DATASETS, "hip-labels", replace(hips, remotes=files))
    output = run("get", "hip-labels", "--to", tmp_path).output
    assert f"--names {tmp_path}/hip-labels/names.json" in output
    assert json.loads((tmp_path / "hip-labels/names.json").read_text())["2"] == "femur"
    assert whole_files(tmp_path) == ["label.mhd", "names.json"]


def test_one_case_alone_says_what_is_still_missing(server, synthrad, tmp_path):
    output = run("get", "synthrad2023", "--to", tmp_path, "--case", "1PA003").output
    cohort = tmp_path / "synthrad2023/cohort/pelvis/unpaired"
    assert f"put MR scans into {cohort}/source, which is empty, then: mr2ct prepare {cohort} " in output


def unpack_slowly(archive: Path, folder: Path, ready) -> None:
    """Unpack, and hang in the middle of the second member."""
    write = archives._write

    def hang(stream, place):
        write(stream, place)
        if place.name == "b.nii":
            ready.set()
            signal.pause()

    archives._write = hang
    with transfer.alone(folder):
        archives.unpack(archive, Remote("http://x/x"), folder)


@pytest.mark.skipif(not hasattr(signal, "pause"), reason="needs POSIX signals")
def test_the_next_run_removes_what_kill_9_left_while_unpacking(server, synthrad, tmp_path):
    archive, folder = tmp_path / "x.zip", tmp_path / "synthrad2023"
    archive.write_bytes(make_zip({"a.nii": BODY, "b.nii": BODY}))
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=unpack_slowly, args=(archive, folder, ready))
    process.start()
    assert ready.wait(60)
    refused = run("get", "synthrad2023", "--to", tmp_path)
    assert isinstance(refused.exception, InputError) and "another download" in str(refused.exception)
    assert len(list(tmp_path.glob(".synthrad2023.*/synthrad2023/*.nii"))) == 2  # of the living run: not touched
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    shelf = tmp_path / "downloads/synthrad2023"
    for left in (folder / "Task1/pelvis/.1PA001.abcd1234", shelf / ".Task1.zip.part.json.abcd1234"):
        left.mkdir(parents=True)
        (left / ".lock").touch()  # as a process that was killed inside `atomic` leaves it
        (left / "half").touch()
    (tmp_path / ".synthrad2023.settings").mkdir()  # not ours: it holds something else
    (tmp_path / ".synthrad2023.settings/mine").write_text("")
    again = run("get", "synthrad2023", "--to", tmp_path)
    assert again.exit_code == 0, again.output
    hidden = [path for path in tmp_path.rglob(".*") if path.is_dir()]
    assert [path.name for path in hidden] == [".synthrad2023.settings"] and not list(tmp_path.rglob("*.lock"))


def test_sigterm_while_unpacking_leaves_the_archive_and_nothing_hidden(server, synthrad, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["data_download", "get", "synthrad2023", "--to", str(tmp_path)])
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_write", lambda stream, place: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            command.main()
    assert ended.value.code == 128 + signal.SIGTERM
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "downloads/synthrad2023/Task1.zip"
    ]
    before = len(server.requests)
    assert run("get", "synthrad2023", "--to", tmp_path).exit_code == 0 and len(server.requests) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get", "nonsense"], "synthrad2023"),
        (["get", "gold-atlas"], "by hand only"),
        (["get", "mm-whs"], "python -m data_download arrange mm-whs FOLDER"),
        (["get", "ixi", "--case", "IXI002"], "--case"),
        (["get", "hip-labels", "--case", "Pelvic-Ref-003"], "Pelvic-Ref-001"),
    ],
    ids=["unknown", "by-hand", "by-hand-arranged", "tar", "no-case"],
)
def test_errors_are_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.setattr("sys.argv", ["data_download", *arguments, "--to", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_said(server, synthrad, tmp_path):
    (tmp_path / "file").write_text("")
    for case in ([], ["--case", "1PA001"]):
        assert isinstance(run("get", "synthrad2023", "--to", tmp_path / "file", *case).exception, InputError)


def test_list_names_every_set_with_its_licence():
    output = run("list").output
    for name, data in registry.DATASETS.items():
        assert name in output and data.licence in output


def test_registry_is_whole():
    for name, data in registry.DATASETS.items():
        assert bool(data.remotes) != bool(data.by_hand), name
        assert bool(data.layout) != bool(data.names) or name == "gold-atlas", name  # arranged, or label maps with names
        for item in data.remotes:
            assert item.checksum or item.size, item.url
            assert item.url.startswith("https://") or item.checksum, item.url
            digits = {"md5": 32, "sha256": 64}
            assert item.checksum is None or len(item.checksum.split(":")[1]) == digits[item.checksum.split(":")[0]]
    assert len(registry.dataset("hip-labels").remotes) == 16 and len(registry.dataset("head-labels").remotes) == 20


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar"])
def test_a_piece_that_passes_for_an_archive_is_removed_and_the_same_command_goes_on(
    server, tmp_path, monkeypatch, make: Callable[..., bytes]
):
    """The server tells neither length nor version, and the registry neither size nor checksum."""
    server.body, server.tag, server.script = make({"a/b.txt": BODY}), "", ["no-length cut"]
    data = DataSet("a set", "CC", "page", (Remote(server.url + "set.archive"),))
    monkeypatch.setitem(registry.DATASETS, "ixi", data)
    words = ["get", "ixi", "--to", str(tmp_path)]
    first = CliRunner().invoke(command.app, words)
    said = f"{transfer.in_words(len(server.body) // 2)} came from {server.url}set.archive"
    assert isinstance(first.exception, InputError) and said in str(first.exception)
    assert whole_files(tmp_path) == []
    again = CliRunner().invoke(command.app, words)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "ixi/a/b.txt").read_bytes() == BODY
