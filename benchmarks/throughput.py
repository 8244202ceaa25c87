"""Steps a second of both methods at paper size, and how much of the machine's peak they take: recorded in results/throughput.csv.

The peak is measured, not read off a data sheet: what one large matrix product reaches in the precision that the run takes. Operations
are those of convolutions and matrix products, two for a multiplication and an addition, as PyTorch's FlopCounterMode counts them.
"""

import datetime

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import DEVICE, seconds, show, trainer
from mr2ct_lib.course.experiments import RESULTS
from mr2ct_lib.files import atomic
from mr2ct_lib.methods import hardware
from tools.record import processor

GPU = DEVICE.type == "cuda"
BATCHES = (1, 2, 4, 8, 16) if GPU else (1, 2)
ROUNDS = 20 if GPU else 3
TYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def peak(precision: str) -> float:
    """Operations a second of a product of square matrices."""
    side = 8192 if GPU else 2048
    a, b = (torch.rand(side, side, device=DEVICE, dtype=TYPES[precision]) for _ in range(2))
    return 2 * side**3 / seconds({"product": lambda: a @ b}, rounds=9)["product"]


def main() -> None:
    """Print and record: one row a method and batch; rows of other processors stay in the table."""
    table = RESULTS / "throughput.csv"
    precision = hardware.choose_precision("auto", DEVICE)
    about = {"processor": f"{processor()}, {torch.get_num_threads()} threads", "precision": precision}
    about |= {"date": datetime.date.today().isoformat(), "torch": torch.__version__.split("+")[0]}
    best, rows = peak(precision), []
    print(f"  {precision}: a matrix product reaches {best / 1e12:.2f} T/s")
    for method in ("cyclegan", "dicyclegan"):
        for batch in BATCHES:
            run = trainer(method, "paper", batch_size=batch)
            with FlopCounterMode(display=False) as counter:
                run.step()
            operations, took = counter.get_total_flops(), seconds({"step": run.step}, ROUNDS)["step"]
            row = {"method": method, "batch": batch, "steps_per_second": 1 / took, "slices_per_second": 2 * batch / took}
            rows.append(row | {"tera_operations_per_step": operations / 1e12, "share_of_peak": operations / took / best})
            detail = f"{100 * rows[-1]['share_of_peak']:.0f} % of the peak"
            show(f"{method}, batch {batch}: steps a second", 1 / took, "as high as can be", detail)
    found = pd.DataFrame(rows).assign(**about)
    known = pd.read_csv(table) if table.exists() else pd.DataFrame({"processor": []})
    with atomic(table) as temporary:
        pd.concat([known[known.processor != about["processor"]], found]).to_csv(temporary, index=False, float_format="%.4g")
