"""Unpaired MR-to-CT synthesis: CycleGAN with gradient consistency, and DicycleGAN, on virtual patients or your own scans."""

__version__ = "0.1.0"
