"""Steps per second of both methods at paper size, and their share of the machine's peak: results/throughput.csv.

The peak is measured: it is what one large matrix product reaches in the precision of the run. Operations are
those of convolutions and matrix products, two for a multiplication and an addition, as PyTorch's FlopCounterMode
counts them.
"""

import datetime

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import DEVICE, seconds, show, trainer
from mr2ct_lib.course.experiments import RESULTS
from mr2ct_lib.files import atomic
from mr2ct_lib.methods import hardware
from tools.record import commit, processor

GPU = DEVICE.type == "cuda"
BATCHES = (1, 2, 4, 8, 16) if GPU else (1, 2)
ROUNDS = 20 if GPU else 3
KEY = ["processor", "method", "profile", "batch"]
TYPES = hardware.TYPES | {"float32": torch.float32}


def peak(precision: str) -> float:
    """Operations per second of a product of square matrices; float32 in TF32 on a GPU, as its convolutions are."""
    side = 8192 if GPU else 2048
    a, b = (torch.rand(side, side, device=DEVICE, dtype=TYPES[precision]) for _ in range(2))
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    best = seconds({"product": lambda: a @ b}, rounds=9)["product"]
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * side**3 / best


def about(precision: str) -> dict[str, str]:
    """Where and when a row was measured."""
    where = {"processor": f"{processor()}, {torch.get_num_threads()} threads", "precision": precision}
    when = {"date": datetime.date.today().isoformat(), "torch": torch.__version__.split("+")[0], "commit": commit()}
    return where | when


def row(method: str, profile: str, batch: int, took: float, operations: int, best: float) -> dict[str, object]:
    """One line of the table: took in seconds per step, best in operations per second."""
    return {
        "method": method, "profile": profile, "batch": batch, "steps_per_second": 1 / took,
        "slices_per_second": 2 * batch / took, "tera_operations_per_step": operations / 1e12,
        "share_of_peak": operations / took / best,
    }  # fmt: skip


def record(rows: list[dict[str, object]]) -> None:
    """Write rows to results/throughput.csv, each in the place of one of the same KEY; all others stay."""
    table = RESULTS / "throughput.csv"
    known = [pd.read_csv(table)] if table.exists() else []
    both = pd.concat([*known, pd.DataFrame(rows)]).drop_duplicates(KEY, keep="last")
    with atomic(table) as temporary:
        both.to_csv(temporary, index=False, float_format="%.4g")


def main() -> None:
    """Print and record one row per method and batch."""
    precision = hardware.choose_precision("auto", DEVICE, channels=256)
    best, rows = peak(precision), []
    print(f"  {precision}: a matrix product reaches {best / 1e12:.2f} T/s")
    for method in ("cyclegan", "dicyclegan"):
        for batch in BATCHES:
            run = trainer(method, "paper", batch_size=batch)
            with FlopCounterMode(display=False) as counter:
                run.step()
            took = seconds({"step": run.step}, ROUNDS)["step"]
            rows.append(row(method, "paper", batch, took, counter.get_total_flops(), best) | about(precision))
            detail = f"{100 * rows[-1]['share_of_peak']:.0f} % of the peak"
            show(f"{method}, batch {batch}: steps per second", 1 / took, "as high as can be", detail)
    record(rows)
