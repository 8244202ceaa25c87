"""Unpaired MR-to-CT synthesis on virtual patients or your own scans: CycleGAN with gradient consistency, DicycleGAN."""

__version__ = "0.1.0"
