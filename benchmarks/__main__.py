"""python -m benchmarks [losses] [loader] [patients] [synthesis] [training] [curves] [throughput] [gpu].

Runs those named, or the first five.
"""

import importlib
import sys
from pathlib import Path

import torch

from benchmarks.measure import describe

HELPERS = {"__init__", "__main__", "measure", "plain"}
LONG = {"curves", "throughput", "gpu"}  # only when named: minutes, and the last two write to results/


def main() -> None:
    """Print the machine and the ratios."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)
    names = sys.argv[1:] or [name for name in known if name not in LONG]
    if unknown := set(names) - set(known):
        sys.exit(f"benchmarks: {', '.join(unknown)} unknown; expected some of {', '.join(known)}")
    torch.manual_seed(0)
    print(describe())
    for name in names:
        print(name)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
