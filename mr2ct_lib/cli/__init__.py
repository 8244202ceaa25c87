"""The command `mr2ct`: one function per command. Bad input ends a command with one sentence and exit code 2."""

from mr2ct_lib.cli import learning, scans  # each registers its commands
from mr2ct_lib.cli.entry import app, main

__all__ = ["app", "learning", "main", "scans"]
