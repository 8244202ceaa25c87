"""What the tests of the command line share."""

from pathlib import Path

TINY = [
    *("--set", "filters=4", "--set", "blocks=1", "--set", "discriminator_filters=4", "--set", "discriminator_layers=1"),
    *("--set", "batch_size=2", "--set", "decay_iterations=0", "--set", "log_every=1", "--set", "checkpoint_every=1"),
]


def files(folder: Path) -> dict[str, float]:
    """Everything below `folder`, with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
