"""Training of both methods: one step as the papers write it, and one loop for one process or many.

Every draw of a run (slices, augmentation, image pools) is a function of the seed and the step, so a run needs no other state than
its networks, optimisers, pools and step to go on exactly as if it had never stopped, on any number of processes.
"""

import copy
import dataclasses
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from matplotlib import image as pictures
from torch import Tensor, nn
from tqdm.auto import tqdm

import mr2ct_lib
from mr2ct_lib.files import InputError, atomic, read_json, write_json
from mr2ct_lib.images.slices import DOMAINS, PreparedSlices, augment, unpaired_batch
from mr2ct_lib.methods import losses, machine
from mr2ct_lib.methods.distributed import make_fabric, say_to_all, together
from mr2ct_lib.methods.networks import Discriminator, initialise
from mr2ct_lib.methods.settings import Settings
from mr2ct_lib.methods.stopping import Judges, Patience
from mr2ct_lib.methods.translator import Architecture, Translator

PREPARATION_KEYS = ("anatomy", "plane", "shape", "spacing", "slice_spacing", "windows", "normalisation", "n4", "profile")


class ImagePool:
    """The last synthetic slices that a discriminator was shown; half of what it is shown next comes from here (Shrivastava et al. 2017)."""

    def __init__(self, size: int):
        self.size, self.images = size, []  # of tensors (1, h, w)

    def query(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Slices (n, 1, h, w) -> as many: each is kept, and with a chance of one half an older one comes in its place."""
        shown = []
        for image in images.detach():
            if self.size == 0:
                shown.append(image)
            elif len(self.images) < self.size:
                self.images.append(image.clone())
                shown.append(image)
            elif rng.random() < 0.5:
                place = int(rng.integers(self.size))
                shown.append(self.images[place])
                self.images[place] = image.clone()
            else:
                shown.append(image)
        return torch.stack(shown)


class Networks(nn.Module):
    """The four networks of a run: two generators in a translator, `judge_source` and `judge_target`."""

    def __init__(self, settings: Settings, preparation: dict[str, Any]):
        super().__init__()
        s = settings
        offset_layers = s.offset_layers if s.method == "dicyclegan" else None
        self.translator = Translator(Architecture(s.filters, s.blocks, offset_layers, s.upsampling), preparation, dataclasses.asdict(s))
        self.judge_source = Discriminator(s.discriminator_filters, s.discriminator_layers)
        self.judge_target = Discriminator(s.discriminator_filters, s.discriminator_layers)
        parts = (self.translator.source_to_target, self.translator.target_to_source, self.judge_source, self.judge_target)
        for i, network in enumerate(parts):
            initialise(network, seed=4 * s.seed + i)


def cyclegan_losses(networks: Networks, source: Tensor, target: Tensor, s: Settings) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the generators of Hiasa et al. 2018 minimise (Eq. 6), term by term and weighted, and both translations for the judges.

    source, target: slices (n, 1, h, w) in [-1, 1]. Returns ({term: scalar}, synthetic source, synthetic target).
    """
    to_target, to_source = networks.translator.source_to_target, networks.translator.target_to_source
    synthetic_target, synthetic_source = to_target(source), to_source(target)
    terms = {
        "adversarial": losses.adversarial(networks.judge_target(synthetic_target), real=True)
        + losses.adversarial(networks.judge_source(synthetic_source), real=True),
        "cycle": s.lambda_cycle
        * (losses.cycle(source, to_source(synthetic_target)) + losses.cycle(target, to_target(synthetic_source))),  # Eq. 3
    }
    if s.lambda_gc:
        terms["gc"] = s.lambda_gc * _gradient_consistency(source, synthetic_target, target, synthetic_source, s)
    return terms, synthetic_source, synthetic_target


def dicyclegan_losses(networks: Networks, source: Tensor, target: Tensor, s: Settings) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the generators of Wang et al. 2018 minimise, term by term and weighted, and both deformed translations for the judges.

    The judges see deformed passes, which may take on the other domain's shape; alignment holds the undeformed passes to their source.
    source, target: slices (n, 1, h, w) in [-1, 1]. Returns ({term: scalar}, deformed synthetic source, deformed synthetic target).
    """
    to_target, to_source = networks.translator.source_to_target, networks.translator.target_to_source
    aligned_target, deformed_target = to_target.both(source)
    aligned_source, deformed_source = to_source.both(target)
    cycled_source, dicycled_source = to_source.both(aligned_target, deformed_target)
    cycled_target, dicycled_target = to_target.both(aligned_source, deformed_source)
    terms = {
        "adversarial": losses.adversarial(networks.judge_target(deformed_target), real=True)
        + losses.adversarial(networks.judge_source(deformed_source), real=True),
        "cycle": s.lambda_cycle * (losses.cycle(source, cycled_source) + losses.cycle(target, cycled_target)),
        "dicycle": s.lambda_dicycle * (losses.cycle(source, dicycled_source) + losses.cycle(target, dicycled_target)),
        "align": s.lambda_align * losses.alignment(source, aligned_target, target, aligned_source),
    }
    if s.lambda_gc:
        terms["gc"] = s.lambda_gc * _gradient_consistency(source, aligned_target, target, aligned_source, s)
    return terms, deformed_source, deformed_target


def _gradient_consistency(source: Tensor, synthetic_target: Tensor, target: Tensor, synthetic_source: Tensor, s: Settings) -> Tensor:
    """L_GC of both directions (Eq. 5)."""
    there = losses.gradient_consistency(source, synthetic_target, s.gc_operator, s.gc_absolute)
    back = losses.gradient_consistency(target, synthetic_source, s.gc_operator, s.gc_absolute)
    return (there + back) / 2


GENERATOR_LOSSES = {"cyclegan": cyclegan_losses, "dicyclegan": dicyclegan_losses}


class Trainer:
    """A run between two steps: networks, optimisers, pools, step. `step()` does one more."""

    def __init__(self, settings: Settings, data: PreparedSlices, fabric: Fabric):
        self.settings, self.data, self.fabric, self.step_number = settings, data, fabric, 0
        preparation = {key: data.meta[key] for key in PREPARATION_KEYS if key in data.meta}
        machine.keep_memory()
        self.precision = fabric.broadcast(machine.choose_precision(settings.precision, fabric.device))  # the same for all processes
        self.networks = fabric.to_device(Networks(settings, preparation))
        judges = [*self.networks.judge_source.parameters(), *self.networks.judge_target.parameters()]
        self.parameters = {"generators": list(self.networks.translator.parameters()), "judges": judges}
        self.optimisers = {
            name: torch.optim.Adam(parameters, settings.learning_rate, betas=(settings.beta1, 0.999), fused=True)
            for name, parameters in self.parameters.items()
        }
        self.averaged = copy.deepcopy(self.networks.translator).requires_grad_(False)  # what the run is for: saved at the end
        self.pools = {"source": ImagePool(settings.pool_size), "target": ImagePool(settings.pool_size)}
        self.patience, self.judges, self.out_of_patience = Patience(), Judges(), False
        self.epoch = settings.steps_an_epoch(max(data.count(domain, settings.patients) for domain in DOMAINS))

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or nothing was gained for too long in the second phase."""
        return self.out_of_patience or self.step_number >= self.settings.total_iterations

    def step(self) -> dict[str, float]:
        """One update of the generators and one of the judges, as in Zhu et al. 2017; the losses of the step, averaged over processes."""
        s, step = self.settings, self.step_number
        share = slice(self.fabric.global_rank, None, self.fabric.world_size)  # this process's part of the batch
        source, target = unpaired_batch(self.data, step, s.batch_size, s.seed, s.patients)
        if s.augment:
            source, target = augment(source, seed=(s.seed, step, 0)), augment(target, seed=(s.seed, step, 1))
        source, target = (self.fabric.to_device(x[share]) for x in (source, target))
        for optimiser in self.optimisers.values():
            optimiser.param_groups[0]["lr"] = s.learning_rate_at(step)

        for parameter in self.parameters["judges"]:
            parameter.requires_grad_(False)  # they pass gradients on to the generators and need none themselves
        with self._autocast():
            terms, synthetic_source, synthetic_target = GENERATOR_LOSSES[s.method](self.networks, source, target, s)
        self._update("generators", sum(terms.values()))

        for parameter in self.parameters["judges"]:
            parameter.requires_grad_(True)
        judged = {}
        with self._autocast():
            for i, (domain, real, synthetic) in enumerate((("source", source, synthetic_source), ("target", target, synthetic_target))):
                everyone = self._gather(synthetic)
                remembered = self.pools[domain].query(everyone, np.random.default_rng((s.seed, step, i)))[share]
                judge = getattr(self.networks, f"judge_{domain}")
                for_real, for_synthetic = judge(torch.cat([real, remembered])).chunk(2)  # one pass for both
                wrong = losses.adversarial(for_real, real=True) + losses.adversarial(for_synthetic, real=False)
                judged[f"judge_{domain}"] = 0.5 * wrong
        self._update("judges", sum(judged.values()))

        self.step_number += 1
        share_kept = min(s.average, 1 - 1 / self.step_number)  # a plain mean at first, so that the untrained start is forgotten
        torch._foreach_lerp_(list(self.averaged.parameters()), self.parameters["generators"], 1 - share_kept)
        values = torch.stack([value.detach().float() for value in (terms | judged).values()])
        values = self.fabric.all_reduce(values, reduce_op="mean")
        return dict(zip(terms | judged, values.tolist(), strict=True))

    def lose_patience(self, loss: float) -> None:
        """Early stopping: after a step of total loss `loss`, begin the second phase, or end it, when nothing was gained for too long."""
        s, first = self.settings, self.step_number <= self.settings.iterations
        if self.patience.is_out(loss, self.epoch, s.patience if first else s.decay_patience):
            if first:
                self.settings = dataclasses.replace(s, iterations=self.step_number)
            self.out_of_patience = not first
        if self.step_number == self.settings.iterations:
            self.patience = Patience()  # each phase is judged by itself

    def _autocast(self) -> torch.autocast:
        """The networks in bf16 where the run is; losses, weights and optimisers stay float32."""
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _update(self, name: str, loss: Tensor) -> None:
        """Backward, mean of the gradients over processes, one Adam step."""
        optimiser, parameters = self.optimisers[name], self.parameters[name]
        optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self.fabric.world_size > 1:
            used = [p for p in parameters if p.grad is not None]
            flat = self.fabric.all_reduce(torch.cat([p.grad.flatten() for p in used]), reduce_op="mean")
            for p, mean in zip(used, flat.split([p.numel() for p in used]), strict=True):
                p.grad.copy_(mean.view(p.shape))
        optimiser.step()

    def _gather(self, slices: Tensor) -> Tensor:
        """All processes' slices in the order of the whole batch, so that every process keeps the same pool."""
        if self.fabric.world_size == 1:
            return slices
        everyone = [torch.empty_like(slices, memory_format=torch.contiguous_format) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(everyone, slices.detach().contiguous())
        return torch.stack(everyone, dim=1).flatten(0, 1)

    def state(self) -> dict[str, Any]:
        """Everything that going on needs, as tensors and plain values."""
        return {
            "step": self.step_number,
            "precision": self.precision,
            "networks": self.networks.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "pools": {domain: pool.images for domain, pool in self.pools.items()},
            "stopping": {
                "iterations": self.settings.iterations,
                "patience": dataclasses.asdict(self.patience),
                "out_of_patience": self.out_of_patience,
                "judges": self.judges.steps,
            },
            "random": torch.get_rng_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned. Raises RuntimeError or KeyError when it is of another architecture."""
        self.networks.load_state_dict(state["networks"])
        self.averaged.load_state_dict(state["averaged"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        for domain, pool in self.pools.items():
            pool.images = [self.fabric.to_device(image) for image in state["pools"][domain]]
        torch.set_rng_state(state["random"].cpu())
        stopping = state["stopping"]
        self.settings = dataclasses.replace(self.settings, iterations=stopping["iterations"])
        self.patience, self.judges = Patience(**stopping["patience"]), Judges(stopping["judges"])
        self.out_of_patience = stopping["out_of_patience"]
        self.step_number, self.precision = state["step"], state["precision"]


def train(
    settings: Settings,
    data: str | Path,
    out: str | Path,
    resume: bool = False,
    progress: bool | None = None,
    device: str = "auto",
    tensorboard: bool = False,
) -> Path:
    """Train on the prepared slices in `data`, write the run folder `out`, and return it.

    The folder: config.json, log.jsonl, checkpoint.pt, samples/, and at the end translator/. With `resume` a run that was stopped goes
    on from its last checkpoint to the same end, bit for bit on the same machine; a finished one is left as it is. Under torchrun all
    processes share one run. progress: a bar, by default where someone watches. device: "auto" (a GPU if there is one), "cpu", "cuda".
    tensorboard: also write what log.jsonl and samples/ hold to tensorboard/.

    Raises InputError for data that cannot be trained on, a folder that holds another run, a broken checkpoint, a full disk, and
    when a loss is no longer a number or a judge has collapsed (the last good checkpoint stays).
    """
    out, prepared = Path(out), PreparedSlices(data)
    _check_data(prepared, settings)
    settings = settings.in_steps(max(prepared.count(domain, settings.patients) for domain in DOMAINS))
    fabric = make_fabric(settings.batch_size, device)
    config = {"settings": dataclasses.asdict(settings), "data": prepared.meta, "mr2ct": mr2ct_lib.__version__, "torch": torch.__version__}
    config = json.loads(json.dumps(config))
    _compare(fabric.broadcast(config), config, "the first process")
    say_to_all(fabric, lambda: _open_run(out, config, resume))
    if fabric.broadcast((out / "translator" / "translator.json").is_file()):  # what is written last: the run is finished
        return out
    trainer = Trainer(settings, prepared, fabric)
    with together(fabric, lambda: f"{out}, step {trainer.step_number}"):
        seconds = _load_checkpoint(trainer, out) if resume and (out / "checkpoint.pt").exists() else 0.0
        if fabric.broadcast(trainer.step_number) != trainer.step_number:
            raise InputError(f"{out}: holds another checkpoint than on the first machine; expected one folder that all machines share")
        if fabric.is_global_zero:
            _cut_log(out, trainer.step_number)
        with _board(out, trainer.step_number, tensorboard and fabric.is_global_zero) as board:
            _go_on(trainer, out, seconds, progress, board)
        fabric.barrier()
    return out


def _go_on(trainer: Trainer, out: Path, seconds: float, progress: bool | None, board: Any) -> None:
    """Step until the run is finished; log, sample and save on the first process. seconds: trained so far; board: of _board."""
    fabric, started = trainer.fabric, time.perf_counter() - seconds
    total = trainer.settings.total_iterations
    bar = tqdm(None, trainer.settings.method, total, initial=trainer.step_number, disable=_quiet(progress, fabric), mininterval=1)
    with bar, (out / "log.jsonl").open("a", encoding="utf-8") if fabric.is_global_zero else open(os.devnull, "w") as log:
        while not trainer.finished:
            rate = trainer.settings.learning_rate_at(trainer.step_number)
            terms, s = trainer.step(), trainer.settings
            trainer.judges.look(terms, trainer.step_number, out)
            trainer.lose_patience(sum(value for name, value in terms.items() if not name.startswith("judge_")))
            bar.update()
            done = trainer.step_number
            if done % s.log_every == 0 or trainer.finished:
                line = {"step": done, "seconds": round(time.perf_counter() - started, 2), "learning_rate": rate}
                log.write(json.dumps(line | {name: round(value, 6) for name, value in terms.items()}) + "\n")
                log.flush()
                bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()}, refresh=False)
                for name, value in ({"learning_rate": rate} | terms).items() if board else ():
                    board.add_scalar(name, value, done)
            if not fabric.is_global_zero:
                continue
            if s.sample_every and done % s.sample_every == 0:
                sample = _save_sample(trainer, out, done)
                if board:
                    board.add_image("sample", (sample + 1) / 2, done, dataformats="HW")
            if trainer.finished or (done % s.checkpoint_every == 0 and not trainer.judges.suspect):
                os.fsync(log.fileno())
                _save_checkpoint(trainer, out, time.perf_counter() - started)
    if fabric.is_global_zero:
        trainer.averaged.save(out / "translator")


def read_log(run: str | Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl; a last line still being written is left out."""
    path = Path(run) / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _check_data(prepared: PreparedSlices, settings: Settings) -> None:
    """InputError for too few slices or patients, slices too small for the judges, and values that no window made."""
    for domain in ("source", "target"):
        patients = prepared.patients(domain)[: settings.patients]
        if settings.patients and len(patients) < settings.patients:
            raise InputError(f"{prepared.folder}: has {len(patients)} {domain} patients; expected {settings.patients} (setting patients)")
        count = sum(where.stop - where.start for _, where in patients)
        if count < settings.batch_size:
            raise InputError(
                f"{prepared.folder}: has {count} {domain} slices; expected at least a batch of {settings.batch_size}. "
                "Prepare more patients or set batch_size lower"
            )
        some = np.asarray(getattr(prepared, domain)[np.linspace(0, count - 1, min(count, 32)).astype(int)])
        if not (np.abs(some) <= 1 + 1e-3).all():  # NaN is not either
            raise InputError(
                f"{prepared.folder}/{domain}.npy: holds values from {some.min():.4g} to {some.max():.4g}; expected -1 to 1, as a window "
                "brings them to. Prepare again"
            )
    side, least = min(prepared.meta["shape"]), 3 * 2**settings.discriminator_layers
    if side < least:
        raise InputError(
            f"{prepared.folder}: its slices have {side} pixels on a side; expected at least {least} for discriminator_layers="
            f"{settings.discriminator_layers}. Prepare them larger or set discriminator_layers lower"
        )


def _open_run(out: Path, config: dict[str, Any], resume: bool) -> None:
    """Make the run folder, or check that the one that is there is the same run and may go on."""
    leftovers = [path for path in (*out.glob(".*.*"), *(out / "samples").glob(".*.*")) if path.is_dir()]  # of writes that were killed
    if (out / "config.json").exists():
        if not resume:
            raise InputError(f"{out}: already holds a run; add --resume to go on with it, or choose another folder")
        _compare(read_json(out / "config.json"), config, f"{out}/config.json")
    elif out.is_dir() and set(out.iterdir()) - set(leftovers):
        raise InputError(f"{out}: is a folder that holds something else; choose an empty or a new one")
    else:
        write_json(config, out / "config.json")
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


class AnotherRun(InputError):
    """The folder's run was made with other settings or data than are asked for now."""


def _compare(before: Any, now: dict[str, Any], where: str) -> None:
    """AnotherRun that names what differs between a run's config.json and what is asked for now."""
    for part in ("settings", "data"):
        old, new = before.get(part, {}) if isinstance(before, dict) else {}, now[part]
        differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if differing:
            key = differing[0]
            raise AnotherRun(
                f"{where}: the run has {part} {key}={old.get(key)!r}, not {new.get(key)!r}; "
                "resume with the run's own settings and data, or choose another folder"
            )


def _save_checkpoint(trainer: Trainer, out: Path, seconds: float) -> None:
    written = io.BytesIO()  # torch's own writing to a full disk raises no OSError
    torch.save(trainer.state() | {"seconds": seconds}, written)
    with atomic(out / "checkpoint.pt") as temporary, temporary.open("wb") as file:
        file.write(written.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def _load_checkpoint(trainer: Trainer, out: Path) -> float:
    """Put the last checkpoint into `trainer`; seconds trained so far."""
    path = out / "checkpoint.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # never runs code from the file
    except Exception as error:  # torch raises many kinds here: zip, pickle, EOF
        raise InputError(f"{path}: is truncated or no checkpoint of mr2ct ({type(error).__name__}); start the run anew") from error
    try:
        trainer.load_state(state)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is of another architecture than this run's settings; resume with the settings that made it") from error
    return state["seconds"]


def _cut_log(out: Path, step: int) -> None:
    """Take off the log what a killed run wrote after its last checkpoint, that of `step`; all of it when there is none."""
    kept = [line for line in read_log(out) if line["step"] <= step]
    with atomic(out / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


@torch.inference_mode()
def _save_sample(trainer: Trainer, out: Path, step: int) -> np.ndarray:
    """samples/<step>.png: four source slices, their translations, four target slices, their translations, a row each; in [-1, 1]."""
    rows = []
    for domain, direction in (("source", "source_to_target"), ("target", "target_to_source")):
        stack = getattr(trainer.data, domain)
        real = np.stack([stack[i] for i in np.linspace(0, len(stack) - 1, 6).astype(int)[1:5]])
        rows += [np.hstack(real), np.hstack(trainer.averaged.translate(real, direction))]
    with atomic(out / "samples" / f"{step:07d}.png") as temporary:
        pictures.imsave(temporary, np.vstack(rows), cmap="gray", vmin=-1, vmax=1)
    return np.vstack(rows)


@contextmanager
def _board(out: Path, step: int, wanted: bool) -> Iterator[Any]:
    """A TensorBoard writer to tensorboard/ that forgets what it held after `step`; None when it is not wanted."""
    if not wanted:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard: is not installed; pip install tensorboard, or train without it") from error
    with SummaryWriter(out / "tensorboard", purge_step=step + 1) as board:
        yield board


def _quiet(progress: bool | None, fabric: Fabric) -> bool | None:
    """tqdm's `disable`: None means that tqdm looks whether someone watches."""
    return True if not fabric.is_global_zero else (None if progress is None else not progress)
