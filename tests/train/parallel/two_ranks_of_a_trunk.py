"""What one of two ranks does for test_trunk.py; not a test itself.

    python two_ranks_of_a_trunk.py FOLDER

Trains the runs of a trunk below FOLDER/shared, one of whose forks is damaged meanwhile, and each of
them alone below FOLDER/alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))

from isoflop.placement import Placement  # noqa: E402  # after the path of the tests
from isoflop.train.parallel import ranks_from_environment  # noqa: E402
from made_trunks import MadeTrunk  # noqa: E402

PLACEMENT = Placement(parallel="ddp", num_ranks=2)


def main(folder: Path) -> None:
    with ranks_from_environment(PLACEMENT) as ranks:
        shared = MadeTrunk(folder / "shared", "sgatlin", placement=PLACEMENT)
        single = MadeTrunk(folder / "alone", "sgatlin", placement=PLACEMENT)
        shared.go(2, ranks=ranks)
        if ranks.is_main:
            (shared.of(2).forks / "11" / "weights.safetensors").write_bytes(b"short")
        for number in (1, 0):
            shared.go(number, ranks=ranks)
        for number in (0, 1, 2):
            single.go(number, shares=False, ranks=ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
