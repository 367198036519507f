"""Overrides the globals of train.py: config files first, then --key=value.

    python train.py config/speeches.py --batch_size=32

It is run by exec, so what it sets is set in train.py.
"""

import sys
from ast import literal_eval
from pathlib import Path

for arg in sys.argv[1:]:
    if not arg.startswith("--"):
        print(f"Overriding config with {arg}:")
        exec(Path(arg).read_text())
        continue
    key, _, text = arg[2:].partition("=")
    if key not in globals():
        raise ValueError(f"Unknown config key: {key}")
    try:
        value = literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    assert type(value) is type(globals()[key]), f"{key} must be a {type(globals()[key])}"
    print(f"Overriding: {key} = {value}")
    globals()[key] = value
