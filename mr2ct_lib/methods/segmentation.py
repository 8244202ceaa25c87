"""Segment muscles and bones from two channels, MR and CT, one of which may be synthetic (Hiasa et al., section 3.2).

A 2D U-Net (MONAI) is trained on real CT + synthetic MR, where labels exist, and used on real MR + synthetic CT. The
paper's reference, a U-Net on labelled MR alone, is the same code with one channel and `cross_validate`. It is no bound
from above: each fold learns from 8 labelled MRs, the two-channel network from 20 labelled CTs. A bound needs equally
many labels, steps and weights.

Channels are slices (N, C, H, W) in [-1, 1]; labels are (N, H, W) uint8 whose values are 0 (background) and the keys of
`names`. Any height and width: slices are padded to what the network needs, and the result is cropped back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm.auto import tqdm

from mr2ct_lib.files import InputError, atomic, read_json, write_json
from mr2ct_lib.images.preparation import Preparation, check_window
from mr2ct_lib.images.slices import PreparedSlices, epoch_indices
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.methods import hardware
from mr2ct_lib.methods.distributed import choose_device
from mr2ct_lib.methods.settings import PROFILES
from mr2ct_lib.methods.synthesis import check_kind
from mr2ct_lib.methods.training_data import check_alike, check_scan
from mr2ct_lib.methods.translator import Translator

PRECISIONS = ("auto", "float32", "bf16")


@dataclass
class Segmenter:
    """A U-Net with what is needed to use it: its channels and the names of its classes, class 0 being the background.
    """

    network: torch.nn.Module
    names: dict[int, str]  # label value -> structure, without background; class i + 1 is the i-th of these
    channels: tuple[str, ...]  # what each input channel shows, for instance ("MR", "CT")
    widths: tuple[int, ...]
    training: dict[str, Any]  # provenance: iterations, learning rate, seed, losses ...


def build_network(channels: int, classes: int, widths: Sequence[int], seed: int = 0) -> torch.nn.Module:
    """Return a U-Net, (N, channels, H, W) -> logits (N, classes, H, W); H and W divisible by 2 ** (len(widths) - 1)."""
    from monai.networks.nets import UNet  # MONAI takes seconds to load

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            spatial_dims=2,
            in_channels=channels,
            out_channels=classes,
            channels=tuple(widths),
            strides=(2,) * (len(widths) - 1),
            num_res_units=1,
            norm="batch",
            act="relu",  # MONAI's default, PReLU, costs a sixth of a CPU step
        )


def _check(channels: np.ndarray, labels: np.ndarray | None, names: Mapping[int, str] | None) -> None:
    """InputError unless slices are (N, C, H, W) of numbers and the labels are theirs, with known values."""
    if channels.ndim != 4 or 0 in channels.shape:
        raise InputError(f"channels: shape {channels.shape}; expected (N, C, H, W) with at least one slice")
    if not np.isfinite(channels).all():
        raise InputError("channels: NaN or infinite values; expected slices in [-1, 1]. Prepare the scans again")
    if labels is None:
        return
    expected = (channels.shape[0], *channels.shape[2:])
    if labels.shape != expected or labels.dtype.kind not in "iu":
        raise InputError(f"labels: shape {labels.shape}, {labels.dtype}; expected integers of shape {expected}")
    unknown = sorted(set(np.unique(labels).tolist()) - {0, *names})
    if unknown:
        raise InputError(f"labels: values {unknown} without a name; expected 0 or one of {sorted(names)}. Name them")


def _names(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names by increasing label value, without the background."""
    result = {int(value): str(names[value]) for value in sorted(names, key=int) if int(value) != 0}
    if not result or min(result) < 0 or max(result) > 255:
        raise InputError(f"names: label values {sorted(result)}; expected at least one, all from 1 to 255")
    return result


def _pad(slices: torch.Tensor, levels: int) -> torch.Tensor:
    """Pad (N, C, H, W) at bottom and right with the border value, to multiples of 2 ** (levels - 1)."""
    multiple = 2 ** (levels - 1)
    height, width = slices.shape[-2:]
    # 2 cells at least at the coarsest level: one cell has no spread to normalise
    bottom = max(-height % multiple, 2 * multiple - height)
    right = max(-width % multiple, 2 * multiple - width)
    return torch.nn.functional.pad(slices, (0, right, 0, bottom), mode="replicate")


def _check_options(channels, channel_names, size, precision, iterations, learning_rate, batch_size, seed) -> None:
    """Raise InputError for the first option of `train_segmenter` that cannot be meant."""
    if len(channel_names) != channels.shape[1]:
        raise InputError(f"channel_names: {tuple(channel_names)}; expected {channels.shape[1]}, one for each channel")
    if size not in PROFILES:
        raise InputError(f'size: "{size}"; expected one of {", ".join(PROFILES)}')
    if precision not in PRECISIONS:
        raise InputError(f'precision: "{precision}"; expected one of {", ".join(PRECISIONS)}')
    if iterations < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(f"iterations: {iterations}, batch_size: {batch_size}; expected at least 1 each")
    if not 0 < learning_rate < float("inf") or seed < 0:
        raise InputError(
            f"learning_rate: {learning_rate}, seed: {seed}; expected a rate above 0 and a seed of at least 0"
        )


def train_segmenter(
    channels: np.ndarray,
    labels: np.ndarray,
    names: Mapping[int, str],
    *,
    channel_names: Sequence[str] = ("MR", "CT"),
    size: str = "quick",
    iterations: int = 100_000,
    learning_rate: float = 1e-4,
    batch_size: int | None = None,
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
    progress: bool = True,
) -> Segmenter:
    """Train a U-Net with Adam on Dice + cross-entropy (MONAI). Equal seeds and threads give equal networks.

    The learning rate falls linearly to 0 over the last half of the iterations. `training` of the result holds what was
    asked for, "final_loss", and "curve", the mean loss of each tenth of the steps.

    Args:
        channels: slices (N, C, H, W), float32 in [-1, 1].
        labels: label values (N, H, W), uint8.
        names: {label value: structure}; 0, the background, may be missing.
        channel_names: what each channel shows.
        size: a profile, for the widths of the network and the slices per step (`settings.PROFILES`).
        iterations, learning_rate: by default the paper's.
        batch_size: another number of slices per step.
        precision: "float32", "bf16" (autocast; the loss stays float32) or "auto", the faster one on this machine.

    Raises InputError for slices, labels or options that do not fit, and when the loss is no longer a number.
    """
    from monai.losses import DiceCELoss

    names = _names(names)
    channels, labels = np.asarray(channels), np.asarray(labels)
    _check(channels, labels, names)
    _check_options(channels, channel_names, size, precision, iterations, learning_rate, batch_size, seed)
    device = torch.device(device or choose_device("auto"))
    bf16 = hardware.choose_precision(precision, device) == "bf16"  # else float32: float16 would need loss scaling

    classes = np.zeros(256, dtype=np.int64)
    classes[list(names)] = np.arange(1, len(names) + 1)
    widths, batch_size = PROFILES[size].unet.widths, batch_size or PROFILES[size].unet.batch_size
    network = build_network(channels.shape[1], len(names) + 1, widths, seed).train()
    network = network.to(device, memory_format=torch.channels_last)
    # batch=True: the overlap of a structure over the whole batch, since most slices lack some structures
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2 * (1 - step / iterations)))
    losses = []
    for step in tqdm(range(iterations), desc="U-Net", disable=not progress):
        chosen = epoch_indices(len(channels), step, batch_size, seed)
        images = _images(channels[chosen], device, len(widths))
        truth = torch.from_numpy(classes[labels[chosen]])[:, None].to(device)  # (n, 1, h, w)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = network(images)
        logits = logits[..., : truth.shape[-2], : truth.shape[-1]].float()
        loss = criterion(logits, truth)
        if not torch.isfinite(loss):
            raise InputError(f"learning_rate: {learning_rate}; the loss is {loss.item()} at step {step}. Lower it")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    losses = torch.stack(losses).cpu()
    training = {
        **{"iterations": iterations, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed},
        **{"precision": "bf16" if bf16 else "float32", "slices": len(channels), "size": size},
        "final_loss": round(float(losses[-20:].mean()), 5),
        "curve": [round(float(np.mean(part)), 4) for part in np.array_split(losses.tolist(), 10) if len(part)],
    }
    return Segmenter(network.eval(), names, tuple(channel_names), widths, training)


def _images(slices: np.ndarray, device: torch.device, levels: int) -> torch.Tensor:
    """Slices (n, c, h, w) as a network of so many levels takes them: padded, channels-last."""
    images = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32)).to(device)
    return _pad(images, levels).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(segmenter: Segmenter, channels: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Segment slices (N, C, H, W) in [-1, 1]; returns label values (N, H, W) uint8."""
    channels = np.asarray(channels)
    _check(channels, None, None)
    if channels.shape[1] != len(segmenter.channels):
        expected = ", ".join(segmenter.channels)
        raise InputError(f"channels: {channels.shape[1]}; expected {len(segmenter.channels)}, namely {expected}")
    network = segmenter.network.eval()
    device = next(network.parameters()).device
    values = np.array([0, *segmenter.names], dtype=np.uint8)
    height, width = channels.shape[2:]
    result = np.empty((len(channels), height, width), dtype=np.uint8)
    for first in range(0, len(channels), batch_size):
        logits = network(_images(channels[first : first + batch_size], device, len(segmenter.widths)))
        best = logits.argmax(dim=1)[:, :height, :width].cpu().numpy()
        result[first : first + batch_size] = values[best]
    return result


def training_channels(prepared: PreparedSlices, translator: Translator) -> np.ndarray:
    """What a U-Net of Hiasa et al. learns from: real CT slices with the MR that the translator makes of them.

    Returns float32 (n, 2, h, w) in [-1, 1] as (synthetic MR, CT), for labels `prepared.labels_target`. Raises
    InputError when the CT patients have no labels, and when the slices are unlike those that the translator was trained
    on.
    """
    if prepared.labels_target is None:
        raise InputError(
            f"{prepared.folder}: its CT patients have no labels; expected labels_target.npy. Prepare a cohort with "
            "labels/"
        )
    if not np.any(prepared.labels_target):
        raise InputError(
            f"{prepared.folder}: none of its labels is above 0; expected marked structures. Check the files in labels/"
        )
    check_alike(prepared.preparation, str(prepared.folder), translator.preparation)
    ct = np.array(prepared.target)
    return np.stack([translator.translate(ct, "target_to_source"), ct], axis=1)


def segment(volume: Volume, translator: Translator, segmenter: Segmenter, strict: bool = False) -> Volume:
    """The structures in an MR, by its two channels MR and synthetic CT (Hiasa et al. 2018).

    volume: a scan of the translator's source domain, any grid. segmenter: trained on the channels (MR, CT), in this
    order, with slices like the translator's. strict: refuse a scan that is unlike the training scans, in place of a
    warning. Returns label values on the volume's own grid. Raises InputError for a network of other channels or of
    other slices, and as `synthesize`.
    """
    if tuple(segmenter.channels) != ("MR", "CT"):
        raise InputError(
            f"segmenter: its channels are {', '.join(segmenter.channels)}; expected MR, CT. "
            "Give a network that `mr2ct segment train` made"
        )
    preparation = translator.preparation
    if "preparation" in segmenter.training:
        check_alike(Preparation.from_dict(segmenter.training["preparation"]), "segmenter", preparation)
    check_kind(volume, preparation.windows["source"], "source")
    slices, place = preparation.to_slices(volume, "source")
    check_window(place.cut, preparation.windows["source"], "the scan")
    check_scan(slices[place.training], translator, "source", strict, place)
    channels = np.stack([slices, translator.translate(slices)], axis=1)  # (n, 2, h, w)
    return preparation.to_volume(predict(segmenter, channels), place, volume, "label", fill=0)


def fold_of_patients(patients: Iterable[str], folds: int = 5, seed: int = 0) -> dict[str, int]:
    """Deal patients into folds of equal size (but for one), shuffled by the seed; InputError for fewer patients than
    folds.

    >>> sorted(fold_of_patients(["a", "b", "c", "d"], folds=2).values())
    [0, 0, 1, 1]
    """
    known = sorted(set(patients))
    if not 2 <= folds <= len(known):
        raise InputError(f"folds: {folds}; expected from 2 to the number of patients, {len(known)}")
    order = np.random.default_rng(seed).permutation(len(known))
    return {known[place]: turn % folds for turn, place in enumerate(order)}


def cross_validate(
    channels: np.ndarray,
    labels: np.ndarray,
    names: Mapping[int, str],
    patients: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    progress: bool = True,
    **training: Any,
) -> np.ndarray:
    """Segment every slice by a network that has not seen its patient; returns label values (N, H, W) uint8.

    patients: the patient of each of the N slices. Further settings go to `train_segmenter`. (The paper: 5 folds over 10
    MRs.)
    """
    patients = np.asarray(patients)
    if len(patients) != len(channels):
        raise InputError(f"patients: {len(patients)}; expected one for each of the {len(channels)} slices")
    fold_of = fold_of_patients(patients.tolist(), folds, seed)
    fold = np.array([fold_of[patient] for patient in patients.tolist()])
    result = np.zeros(np.shape(labels), dtype=np.uint8)
    for turn in tqdm(range(folds), desc="folds", disable=not progress):
        held = fold == turn
        segmenter = train_segmenter(channels[~held], labels[~held], names, seed=seed, progress=False, **training)
        result[held] = predict(segmenter, channels[held])
    return result


def save_segmenter(segmenter: Segmenter, folder: str | Path) -> Path:
    """Write segmenter.json and segmenter.safetensors into a folder, both or neither; returns the folder."""
    folder = Path(folder)
    with atomic(folder) as temporary:
        temporary.mkdir()
        tensors = {name: tensor.contiguous().cpu() for name, tensor in segmenter.network.state_dict().items()}
        (temporary / "segmenter.safetensors").write_bytes(save(tensors))  # a full disk is an OSError so
        description = {
            "format": 1,
            "channels": list(segmenter.channels),
            "names": {str(value): name for value, name in segmenter.names.items()},
            "widths": list(segmenter.widths),
            "training": segmenter.training,
        }
        write_json(description, temporary / "segmenter.json")
    return folder


def load_segmenter(folder: str | Path) -> Segmenter:
    """Read what `save_segmenter` wrote; runs no code from the files. InputError for a missing, foreign or damaged one.
    """
    path = Path(folder) / "segmenter.json"
    description = read_json(path)
    try:
        names = {int(value): name for value, name in description["names"].items()}
        channels, widths = tuple(description["channels"]), tuple(description["widths"])
        training = description["training"]
        network = build_network(len(channels), len(names) + 1, widths)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: does not describe a segmenter ({error!r}); train it again") from error
    weights = path.with_suffix(".safetensors")
    try:
        network.load_state_dict(load_file(weights))
    except OSError as error:
        raise InputError(f"{weights}: cannot be read ({error.strerror or error}); check the path") from error
    except Exception as error:  # safetensors and PyTorch raise types of their own for damaged or foreign weights
        raise InputError(f"{weights}: holds no weights of this network; expected those of {path.name}") from error
    return Segmenter(network.to(memory_format=torch.channels_last).eval(), names, channels, widths, training)
