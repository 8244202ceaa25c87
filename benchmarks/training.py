"""Training steps: the library's against a plain loop, DicycleGAN against CycleGAN, bf16 against float32."""

from benchmarks.measure import DEVICE, SIZES, prepared, seconds, show, trainer
from benchmarks.plain import PlainCycleGAN
from mr2ct_lib.methods import hardware
from mr2ct_lib.methods.settings import make_settings


def main(profiles: tuple[str, ...] = ("quick", "paper")) -> None:
    """Print the ratios of both sizes; the paper's takes some minutes on two threads."""
    for profile in profiles:
        plain = PlainCycleGAN(make_settings("cyclegan", profile, pool_size=0), prepared(SIZES[profile]), DEVICE)
        works = {
            "plain": plain.step,
            "cyclegan": trainer("cyclegan", profile).step,
            "dicyclegan": trainer("dicyclegan", profile).step,
        }
        works["float32"] = trainer("cyclegan", profile, precision="float32").step
        took = seconds(works, rounds=15 if profile == "quick" else 5)
        scale = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in took.items())
        target = ">= 3.5 with AMX, >= 1.2 without, >= 3 on a GPU" if profile == "paper" else "no slower"
        print(f"  {profile}: {scale}; precision taken {hardware.choose_precision('auto', DEVICE)}")
        show(f"{profile}: plain float32 loop : CycleGAN step", took["plain"] / took["cyclegan"], target, "")
        show(
            f"{profile}: plain float32 loop : CycleGAN step in float32",
            took["plain"] / took["float32"],
            "no slower",
            "",
        )
        show(
            f"{profile}: DicycleGAN step : CycleGAN step",
            took["dicyclegan"] / took["cyclegan"],
            "<= 2.3, floor 2.0",
            "",
        )
