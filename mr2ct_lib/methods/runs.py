"""Training runs on disk: open a run's folder, resume it, train, and write its log, samples, checkpoints and translator.

The folder holds config.json, log.jsonl, checkpoint.pt, samples/ and, when the run is finished, translator/. Every file
but the log, which grows line by line, is written whole or not at all. A run that was stopped at any moment continues
from its last checkpoint to the same end.
"""

import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import image as pictures
from tqdm.auto import tqdm

import mr2ct_lib
from mr2ct_lib import files
from mr2ct_lib.files import InputError, atomic, read_json, write_json
from mr2ct_lib.images.slices import DOMAINS, PreparedSlices
from mr2ct_lib.methods.distributed import check_on_first_process, make_fabric, report_lost_process
from mr2ct_lib.methods.settings import Settings
from mr2ct_lib.methods.stopping import ignored_discriminators
from mr2ct_lib.methods.training import Trainer
from mr2ct_lib.methods.training_data import describe_training_data

CHECKPOINT_FORMAT = 3
LEAST_SIDE = 16  # pixels of a slice that a generator takes


class AnotherRun(InputError):
    """The folder holds a run that was made with other settings or data than those given now."""


def train(
    settings: Settings,
    data: str | Path,
    out: str | Path,
    resume: bool = False,
    progress: bool | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    trainer_class: type[Trainer] = Trainer,
) -> Path:
    """Train on prepared slices and write the run's folder. Under torchrun all processes share one run.

    Args:
        settings: of the run, see `settings.make_settings`.
        data: folder that `mr2ct prepare` wrote.
        out: the run's folder, new or empty unless `resume`.
        resume: continue from the last checkpoint, to the same bits on the same machine's CPU; a finished run is left
            as it is.
        progress: show a bar; None: at a terminal only.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        tensorboard: also write what log.jsonl and samples/ hold to tensorboard/.
        trainer_class: what makes the steps, when it is not the papers' own training.

    Returns the folder `out`.

    Raises InputError for data that cannot be trained on, a folder that holds another run, a broken checkpoint or a full
    disk, and when a loss is not finite or a discriminator has collapsed (the last good checkpoint stays).
    """
    out, prepared = Path(out), PreparedSlices(data)
    _check_data(prepared, settings)
    settings = settings.in_steps(max(prepared.count(domain, settings.patients) for domain in DOMAINS))
    fabric = make_fabric(settings.batch_size, device)
    used = {domain: rows[: settings.patients] for domain, rows in prepared.meta["patients"].items()}
    config = {"settings": dataclasses.asdict(settings), "data": prepared.meta | {"patients": used}}
    config = json.loads(json.dumps(config | {"mr2ct": mr2ct_lib.__version__, "torch": torch.__version__}))
    _compare(fabric.broadcast(config), config, "the first process")
    check_on_first_process(fabric, lambda: _open_folder(out, config, resume))
    if fabric.broadcast((out / "translator" / "translator.json").is_file()):  # written last: the run is finished
        return out
    trainer = trainer_class(settings, prepared, fabric)
    with report_lost_process(fabric, lambda: f"{out}, step {trainer.step_number}"):
        seconds = _load_checkpoint(trainer, out) if resume and (out / "checkpoint.pt").exists() else 0.0
        if fabric.broadcast(trainer.step_number) != trainer.step_number:
            raise InputError(
                f"{out}: holds another checkpoint than on the first machine; expected one folder shared by all machines"
            )
        if fabric.is_global_zero:
            _cut_log(out, trainer.step_number)
        with _tensorboard_writer(out, trainer.step_number, tensorboard and fabric.is_global_zero) as board:
            _train_to_the_end(trainer, out, seconds, progress, board)
        fabric.barrier()
    return out


def _train_to_the_end(trainer: Trainer, out: Path, seconds: float, progress: bool | None, board: Any) -> None:
    """Step until the run is finished. The first process logs, samples and saves.

    seconds: spent on the run so far; board: TensorBoard writer or None.
    """
    fabric, started = trainer.fabric, time.perf_counter() - seconds
    first_process, total = fabric.is_global_zero, trainer.settings.total_iterations
    disable = (None if progress is None else not progress) if first_process else True  # None: tqdm looks for a terminal
    bar = tqdm(None, trainer.settings.method, total, initial=trainer.step_number, disable=disable, mininterval=1)
    unread: list[tuple[float, dict[str, Any]]] = []  # learning rate and loss terms of steps, not looked at yet
    with bar, (out / "log.jsonl").open("a", encoding="utf-8") if first_process else open(os.devnull, "w") as log:
        while not trainer.finished:
            rate = trainer.settings.learning_rate_at(trainer.step_number)
            unread.append((rate, trainer.step()))
            bar.update()
            if not _must_read(trainer, len(unread)):
                continue
            rates, losses = _read(unread)
            for step, terms in enumerate(losses, start=trainer.step_number - len(losses) + 1):
                trainer.collapse.check(terms, step, out, lambda step: trainer.batches.describe(step - 1))
                of_generators = sum(v for name, v in terms.items() if not name.startswith("discriminator_"))
                trainer.count_patience(of_generators, step)
            s, step, unread = trainer.settings, trainer.step_number, []
            if step % s.log_every == 0 or trainer.finished:
                line = {"step": step, "seconds": round(time.perf_counter() - started, 2), "learning_rate": rates[-1]}
                log.write(json.dumps(line | {name: round(value, 6) for name, value in terms.items()}) + "\n")
                log.flush()
                bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()}, refresh=False)
                for name, value in ({"learning_rate": rates[-1]} | terms).items() if board else ():
                    board.add_scalar(name, value, step)
            if first_process and s.sample_every and step % s.sample_every == 0:
                sample = _save_sample(trainer, out, step)
                if board:
                    board.add_image("sample", (sample + 1) / 2, step, dataformats="HW")
            if first_process and (
                trainer.finished or (step % s.checkpoint_every == 0 and not trainer.collapse.suspects)
            ):
                os.fsync(log.fileno())
                _save_checkpoint(trainer, out, time.perf_counter() - started)
    if first_process:
        n = trainer.settings.patients
        seen = trainer.data if n is None else trainer.data.first_patients(n, n)
        trainer.averaged.training_data = describe_training_data(trainer.averaged, seen)
        trainer.averaged.save(out / "translator")
        if warning := ignored_discriminators(read_log(out)):
            print(f"{out}: {warning}", file=sys.stderr, flush=True)


def _must_read(trainer: Trainer, unread: int) -> bool:
    """Whether to look at the losses of the last `unread` steps now.

    On a CPU after every step. On a GPU, which would wait for it, only where a line, sample or checkpoint is due, or
    where an epoch ends that early stopping counts.
    """
    s, step = trainer.settings, trainer.step_number
    epoch_ends = (s.patience or s.decay_patience) and trainer.patience.steps + unread >= trainer.epoch
    due = any(every and step % every == 0 for every in (s.log_every, s.sample_every, s.checkpoint_every))
    phase_ends = step == s.iterations or trainer.finished
    return bool(not trainer.asynchronous or due or epoch_ends or phase_ends)


def _read(unread: list[tuple[float, dict[str, Any]]]) -> tuple[list[float], list[dict[str, float]]]:
    """The learning rates and losses of steps, fetched from the device in one piece."""
    names = list(unread[0][1])
    values = torch.stack([torch.as_tensor(terms[name]) for _, terms in unread for name in names]).view(-1, len(names))
    losses = [dict(zip(names, row, strict=True)) for row in values.tolist()]
    return [rate for rate, _ in unread], losses


def read_log(run: str | Path) -> list[dict[str, float]]:
    """Return the lines of a run's log.jsonl, without a last line that is still being written.

    Each has step, seconds, learning_rate and every weighted loss term.
    """
    path = Path(run) / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _check_data(prepared: PreparedSlices, settings: Settings) -> None:
    """InputError for too few slices or patients, too small slices, or values outside [-1, 1]."""
    for domain in DOMAINS:
        patients = prepared.patients(domain)[: settings.patients]
        if settings.patients and len(patients) < settings.patients:
            raise InputError(
                f"{prepared.folder}: has {len(patients)} {domain} patients; expected {settings.patients} "
                "(setting patients)"
            )
        count = sum(where.stop - where.start for _, where in patients)
        if count < settings.batch_size:
            raise InputError(
                f"{prepared.folder}: has {count} {domain} slices; expected at least a batch of {settings.batch_size}. "
                "Prepare more patients or set batch_size lower"
            )
        some = np.asarray(getattr(prepared, domain)[np.linspace(0, count - 1, min(count, 32)).astype(int)])
        if not (np.abs(some) <= 1 + 1e-3).all():  # NaN is not either
            raise InputError(
                f"{prepared.folder}/{domain}.npy: holds values from {some.min():.4g} to {some.max():.4g}; expected "
                "-1 to 1, the range of a window. Prepare again"
            )
    side, least = min(prepared.preparation.shape), max(LEAST_SIDE, 3 * 2**settings.discriminator_layers)
    if side < least:
        raise InputError(
            f"{prepared.folder}: its slices have {side} pixels on a side; expected at least {least} for "
            f"discriminator_layers={settings.discriminator_layers}. Prepare them larger"
            f"{' or lower discriminator_layers' if side >= LEAST_SIDE else ''}"
        )


def _open_folder(out: Path, config: dict[str, Any], resume: bool) -> None:
    """Make the run's folder, or check that the one that is there holds the same run and may be resumed."""
    hidden = [path for path in (*out.glob(".*.*"), *(out / "samples").glob(".*.*")) if path.is_dir()]
    unfinished = [path for path in hidden if (path / files.LOCK).exists()]  # by killed writes, or by living ones
    empty = [path for path in hidden if not list(path.glob("*"))]  # as a kill right after its making leaves it
    if (out / "config.json").exists():
        if not resume:
            raise InputError(f"{out}: already holds a run; add --resume to continue it, or choose another folder")
        _compare(read_json(out / "config.json"), config, f"{out}/config.json")
    elif out.is_dir() and set(out.iterdir()) - {*unfinished, *empty}:
        raise InputError(f"{out}: is a folder that holds something else; choose an empty or a new one")
    else:
        write_json(config, out / "config.json")
    for leftover in unfinished:
        files.remove_left(leftover.parent, leftover.name)


def _compare(before: Any, now: dict[str, Any], where: str) -> None:
    """AnotherRun that names the first difference between a run's config.json and the settings and data given now.

    A setting that is younger than the run has had its default there.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Settings) if f.default is not dataclasses.MISSING}
    for part in ("settings", "data"):
        old, new = before.get(part, {}) if isinstance(before, dict) else {}, now[part]
        if part == "settings" and old:
            old = old | {key: value for key, value in defaults.items() if key not in old}
        differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if differing:
            key = differing[0]
            raise AnotherRun(
                f"{where}: the run has {part} {key}={old.get(key)!r}, not {new.get(key)!r}; "
                "resume with the run's own settings and data, or choose another folder"
            )


def _save_checkpoint(trainer: Trainer, out: Path, seconds: float) -> None:
    """Write checkpoint.pt; InputError where weights are no numbers any more, which the next step's losses would show.
    """
    if not all(bool(weights.isfinite().all()) for weights in trainer.networks.parameters()):
        raise InputError(
            f"{out}: weights are not finite after step {trainer.step_number}; expected numbers. The last good "
            "checkpoint is kept. Lower learning_rate"
        )
    content = io.BytesIO()  # torch.save to a full disk does not raise OSError; writing bytes does
    torch.save({"format": CHECKPOINT_FORMAT} | trainer.state() | {"seconds": seconds}, content)
    with atomic(out / "checkpoint.pt") as temporary, temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def _load_checkpoint(trainer: Trainer, out: Path) -> float:
    """Put the last checkpoint into `trainer`; return the seconds spent on the run so far."""
    path = out / "checkpoint.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # never runs code from the file
    except Exception as error:  # torch raises many kinds here: zip, pickle, EOF
        kind = type(error).__name__
        raise InputError(f"{path}: is truncated or no checkpoint of mr2ct ({kind}); start the run anew") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path}: is not of format {CHECKPOINT_FORMAT}, the one that this version of mr2ct writes; start the run "
            "anew in another folder"
        )
    try:
        trainer.load_state(state)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: is of another architecture than this run's settings; resume with the settings that made it"
        ) from error
    return state["seconds"]


def _cut_log(out: Path, step: int) -> None:
    """Remove the lines that a killed run logged after `step`, that of its last checkpoint; 0 removes all."""
    kept = [line for line in read_log(out) if line["step"] <= step]
    with atomic(out / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


@torch.inference_mode()
def _save_sample(trainer: Trainer, out: Path, step: int) -> np.ndarray:
    """Write samples/<step>.png, one row each: four source slices, their translations, four target slices, theirs.

    Returns the picture, values in [-1, 1].
    """
    rows = []
    for domain, direction in (("source", "source_to_target"), ("target", "target_to_source")):
        stack = getattr(trainer.data, domain)
        real = np.stack([stack[i] for i in np.linspace(0, len(stack) - 1, 6).astype(int)[1:5]])
        rows += [np.hstack(real), np.hstack(trainer.averaged.translate(real, direction))]
    with atomic(out / "samples" / f"{step:07d}.png") as temporary:
        pictures.imsave(temporary, np.vstack(rows), cmap="gray", vmin=-1, vmax=1)
    return np.vstack(rows)


@contextmanager
def _tensorboard_writer(out: Path, step: int, wanted: bool) -> Iterator[Any]:
    """A TensorBoard writer to tensorboard/ that drops what was written after `step`; None where it is not wanted."""
    if not wanted:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard: is not installed; pip install tensorboard, or train without it") from error
    with SummaryWriter(out / "tensorboard", purge_step=step + 1) as board:
        yield board
