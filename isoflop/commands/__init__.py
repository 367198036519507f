"""The verbs of the command line: each parses, calls one library function and renders.

These modules import nothing heavy: a verb imports what it needs when it is called.
"""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
"""A folder, which may not exist yet."""
