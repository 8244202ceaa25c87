"""A trained pair of generators with all that is needed to use it: architecture, windows, how its slices were prepared.
"""

import copy
import io
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm.auto import tqdm

from mr2ct_lib.files import InputError, atomic, read_json, write_json
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.methods import fast, hardware
from mr2ct_lib.methods.networks import Generator

DIRECTIONS = ("source_to_target", "target_to_source")
FORMAT = 2
PIXELS = 2**18  # of the slices that are translated at once: 4 of 256x256, in 0.6 GB at 64 filters and 9 blocks
# Places of a slice on the grid of 4 pixels that a generator's two strides make: each row and each column of it once
PLACES = ((0, 0), (1, 2), (2, 3), (3, 1))


@dataclass(frozen=True)
class Architecture:
    """What a generator is built from; see `networks.Generator`."""

    filters: int
    blocks: int
    offset_layers: str | None
    upsampling: str

    def build(self) -> Generator:
        """A generator of this architecture, untrained."""
        return Generator(self.filters, self.blocks, self.offset_layers, self.upsampling)


class Translator(nn.Module):
    """Both generators, `source_to_target` and `target_to_source`, with all that is needed to apply them to a scan.

    preparation: how a scan becomes the slices that they know. training: the settings of the run that made them.
    training_data: what `describe_training_data` says of the slices that they have seen; None where it is not known.
    """

    def __init__(self, architecture: Architecture, preparation: Preparation, training: dict[str, Any]):
        super().__init__()
        self.training_data: dict[str, Any] | None = None
        self.architecture, self.preparation, self.training_record = architecture, preparation, training
        self.source_to_target, self.target_to_source = architecture.build(), architecture.build()
        if architecture.offset_layers == "field":  # one field: the way back undoes it
            self.target_to_source.offsets[0] = self.source_to_target.offsets[0].undo()

    def forward(self, slices: Tensor, direction: str = "source_to_target", deform: bool = False) -> Tensor:
        """Slices (n, 1, h, w) in [-1, 1] of one domain -> the other's, same shape and range; deform as in
        `networks.Generator`."""
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r}; expected one of {', '.join(DIRECTIONS)}")
        return getattr(self, direction)(slices, deform)

    @torch.inference_mode()
    def translate(
        self,
        slices: Any,
        direction: str = "source_to_target",
        deform: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        precision: str = "float32",
        spin: bool = False,
    ) -> Any:
        """As `forward`, for a NumPy array (n, h, w) of any n, in batches and without gradients -> (n, h, w) float32.

        batch_size: default 16, or fewer of slices larger than 128x128, so that memory does not grow with their size.
        precision: "float32", "bf16", or "auto" for bf16 where this machine gains by it.
        spin: the mean of four translations, of the slices at PLACES (cycle spinning, Coifman and Donoho 1995, doi
        10.1007/978-1-4612-2544-7_9): what a network invents depends on the place and fades. Four times the time.
        """
        if spin:
            (height, width), made = np.shape(slices)[1:], 0
            for row, column in PLACES:
                framed = np.pad(slices, ((0, 0), (row, 4 - row), (column, 4 - column)), mode="edge")
                one = self.translate(framed, direction, deform, batch_size, progress, precision)
                made = made + one[:, row : row + height, column : column + width] / len(PLACES)
            return made
        batch_size = batch_size or max(1, min(16, PIXELS // slices[0].size)) if len(slices) else 1
        device = next(self.parameters()).device
        batches = torch.tensor(slices, dtype=torch.float32)[:, None].split(batch_size)
        batches = tqdm(
            batches, "translate", unit="batch", disable=None if progress else True
        )  # None: shown at a terminal only
        with hardware.autocast(device, hardware.choose_precision(precision, device)):
            return torch.cat([self(b.to(device), direction, deform).cpu() for b in batches])[:, 0].numpy()

    def export_onnx(self, path: str | Path, direction: str = "source_to_target") -> None:
        """Write one direction's undeformed pass as ONNX: `slices` (n, 1, h, w) in [-1, 1], any n, h and w multiples of
        4 -> `translated`.

        It needs the extra `onnx` (pip install -e '.[onnx]'). Windows and pixel size stay in translator.json.
        """
        generator = copy.deepcopy(getattr(self, direction)).cpu().float().eval()
        axes, written = {0: "n", 2: "h", 3: "w"}, io.BytesIO()
        options = {
            "input_names": ["slices"],
            "output_names": ["translated"],
            "dynamic_axes": {"slices": axes, "translated": axes},
        }
        with warnings.catch_warnings(), fast.switched_off():
            warnings.simplefilter(
                "ignore"
            )  # of tracing, which this network's plain layers allow, and of PyTorch's newer way
            torch.onnx.export(generator, (torch.zeros(1, 1, 64, 64),), written, dynamo=False, **options)
        with atomic(path) as temporary:
            temporary.write_bytes(written.getvalue())

    def save(self, folder: str | Path) -> None:
        """Write translator.json and the weights of both directions as safetensors, the folder whole or not at all."""
        with atomic(folder) as temporary:
            temporary.mkdir()
            for direction in DIRECTIONS:
                weights = {k: v.detach().cpu().contiguous() for k, v in getattr(self, direction).state_dict().items()}
                (temporary / f"{direction}.safetensors").write_bytes(save(weights))  # a full disk is an OSError so
            record = {"format": FORMAT, "architecture": asdict(self.architecture)}
            record |= {
                "preparation": self.preparation.as_dict(),
                "training": self.training_record,
                "training_data": self.training_data,
            }
            write_json(record, temporary / "translator.json")


def load_translator(folder: str | Path) -> Translator:
    """The translator in `folder` (a translator/ folder or the run folder around it), in evaluation mode on the CPU.

    Nothing in the files is executed. Raises InputError when the folder holds no translator or its weights fit another
    architecture.
    """
    folder = Path(folder)
    if (folder / "translator" / "translator.json").is_file():
        folder = folder / "translator"
    if not (folder / "translator.json").is_file():
        raise InputError(
            f"{folder}: holds no translator.json; expected the translator/ folder of a finished `mr2ct train` run"
        )
    record = read_json(folder / "translator.json")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{folder}/translator.json: is not of format {FORMAT}, which this version of mr2ct writes. Prepare and "
            "train again"
        )
    try:
        preparation = Preparation.from_dict(record["preparation"])
        translator = Translator(Architecture(**record["architecture"]), preparation, record["training"])
        translator.training_data = record.get("training_data")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # PyTorch's own, of a negative size, too
        raise InputError(
            f"{folder}/translator.json: cannot be used ({error}); expected what `mr2ct train` wrote. Train again"
        ) from error
    for direction in DIRECTIONS:
        path = folder / f"{direction}.safetensors"
        try:
            getattr(translator, direction).load_state_dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error}); copy the whole translator/ folder again") from error
        except RuntimeError as error:
            raise InputError(
                f"{path}: its weights are of another architecture than translator.json says "
                f"({record['architecture']}); copy both from the same run"
            ) from error
    return translator.eval()
