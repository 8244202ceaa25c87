"""Steps a second of both methods at paper size, and how much of the machine's peak they take: recorded in results/throughput.csv.

The peak is measured, not read off a data sheet: what one large matrix product reaches in the precision that the run takes. Operations
are those of convolutions and matrix products, two for a multiplication and an addition, as PyTorch's FlopCounterMode counts them.
"""

import statistics
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import DEVICE, now, processor, show, trainer
from mr2ct_lib import machine
from mr2ct_lib.files import atomic
from tools.record import provenance_of_machine

GPU = DEVICE.type == "cuda"
BATCHES = (1, 2, 4, 8, 16) if GPU else (1, 2)
ROUNDS = 20 if GPU else 3
TABLE = Path(__file__).parents[1] / "results" / "throughput.csv"


def peak(precision: str) -> float:
    """Operations a second of the best of ten products of square matrices."""
    side = 8192 if GPU else 2048
    a, b = (torch.rand(side, side, device=DEVICE, dtype=getattr(torch, {"bf16": "bfloat16"}.get(precision, precision))) for _ in range(2))
    taken = []
    for _ in range(10):
        started = now()
        a @ b
        taken.append(now() - started)
    return 2 * side**3 / min(taken)


def main() -> None:
    """Print and record: one row a method and batch; rows of other processors stay in the table."""
    precision, made = machine.choose_precision("auto", DEVICE), provenance_of_machine("paper")
    about = {"processor": f"{processor()}, {torch.get_num_threads()} threads", "precision": precision}
    about |= {"date": made["date"], "torch": made["versions"]["torch"]}
    best, rows = peak(precision), []
    print(f"  {about['processor']}, {precision}: a matrix product reaches {best / 1e12:.2f} T/s")
    for method in ("cyclegan", "dicyclegan"):
        for batch in BATCHES:
            run = trainer(method, "paper", batch_size=batch)
            with FlopCounterMode(display=False) as counter:
                run.step()
            taken = []
            for _ in range(ROUNDS):
                started = now()
                run.step()
                taken.append(now() - started)
            seconds, share = statistics.median(taken), counter.get_total_flops() / statistics.median(taken) / best
            show(f"{method}, batch {batch}: steps a second", 1 / seconds, "as high as can be", f"{100 * share:.0f} % of the peak")
            rows.append({"method": method, "batch": batch, "steps_per_second": 1 / seconds, "slices_per_second": 2 * batch / seconds})
            rows[-1] |= {"tera_operations_per_step": counter.get_total_flops() / 1e12, "share_of_peak": share}
            del run
    found = pd.DataFrame(rows).assign(**about)
    known = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame({"processor": []})
    with atomic(TABLE) as temporary:
        pd.concat([known[known.processor != about["processor"]], found]).to_csv(temporary, index=False, float_format="%.4g")
