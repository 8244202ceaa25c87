"""What gradient consistency and mutual information cost, as a part of the step that uses them, and in memory."""

import subprocess
import sys

import torch

from benchmarks.measure import DEVICE, SIZES, seconds, show, trainer
from mr2ct_lib.methods import losses
from mr2ct_lib.methods.settings import make_settings

MEMORY = """
import torch
from mr2ct_lib.methods.losses import normalised_mutual_information as nmi
torch.set_num_threads(2)
def memory(what):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024
small = torch.rand(1, 1, 64, 64, requires_grad=True); nmi(small.detach(), small).sum().backward()
a, b = torch.rand(4, 1, 256, 256), torch.rand(4, 1, 256, 256, requires_grad=True)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew here; Linux only
before = memory("VmRSS"); nmi(a, b).sum().backward(); print(memory("VmHWM") - before)
"""


def main() -> None:
    """Print both sizes."""
    for profile in ("quick", "paper"):
        n, size = make_settings("cyclegan", profile).batch_size, SIZES[profile]
        a = torch.rand(n, 1, size, size, device=DEVICE) * 2 - 1
        b = (torch.rand(n, 1, size, size, device=DEVICE) * 2 - 1).requires_grad_()
        steps = {"dicyclegan": trainer("dicyclegan", profile).step, "cyclegan": trainer("cyclegan", profile).step}
        took = seconds(
            {
                "nmi": lambda a=a, b=b: losses.normalised_mutual_information(a, b).sum().backward(),
                "gc": lambda a=a, b=b: losses.gradient_consistency(a, b).backward(),
                **steps,
            },
            rounds=9 if profile == "quick" else 2,
        )
        detail = f"{2e3 * took['nmi']:.1f} + {2e3 * took['gc']:.1f} ms of {1e3 * took['dicyclegan']:.0f} ms"
        both = 200 * (took["nmi"] + took["gc"]) / took["dicyclegan"]
        show(f"{profile}: NMI and GC, both directions : DicycleGAN step, %", both, "<= 5", detail)
        show(f"{profile}: GC, both directions : CycleGAN step, %", 200 * took["gc"] / took["cyclegan"], "<= 5", "")
    if sys.platform != "linux":
        return
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    show("peak memory of NMI and its gradient, 4 slices of 256x256, MB", float(done.stdout), "< 200", "")
