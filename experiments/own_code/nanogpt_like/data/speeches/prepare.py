"""Makes train.bin and val.bin of texts, byte by byte: python prepare.py FILE..."""

import sys
from pathlib import Path

import numpy as np

texts = [np.frombuffer(Path(name).read_bytes(), dtype=np.uint8) for name in sorted(sys.argv[1:])]
data = np.concatenate(texts).astype(np.uint16)
n = int(len(data) * 0.9)
data[:n].tofile(Path(__file__).parent / "train.bin")
data[n:].tofile(Path(__file__).parent / "val.bin")
print(f"train has {n:,} tokens, val has {len(data) - n:,}")
