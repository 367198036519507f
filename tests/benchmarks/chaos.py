"""Kills a real run 100 times at random instants, and prints what came of it.

    python tests/benchmarks/chaos.py [KILLS] [FAMILY]
    python tests/benchmarks/chaos.py [KILLS] trunks

With a checkpoint after each step, so that many kills strike while one is written. Also what
checkpoints cost: the same run undisturbed, without any and with one after each step. With `trunks`
it is a study of two trunks of three runs, two at a time; many kills strike at their forks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from isoflop.placement import Placement
from isoflop.plan.planner import make_plan
from made_chaos import AIMS, disturb_study
from made_kills import Figures, disturb, job_in
from made_studies import micro

EVERY_STEP = Placement(checkpoint_every_s=0.0)


def main(num_kills: int, family: str) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = disturb(job_in(folder / "plain", family, Placement()), 0, seed=0)
        saved = disturb(job_in(folder / "saved", family, EVERY_STEP), 0, seed=0)
        killed = disturb(job_in(folder / "killed", family, EVERY_STEP), num_kills, seed=1)
    steps = plain.result["num_steps"]
    same = _is_same(saved, plain) and _is_same(killed, plain)
    share = killed.num_in_a_write / num_kills
    cost = (saved.seconds - plain.seconds) / steps
    print(f"{family}, {steps} steps, a checkpoint after each; {len(plain.weights):,} bytes weights")
    print(f"kills                            {killed.num_kills}")
    print(f"  while a checkpoint was written {killed.num_in_a_write} ({share:.0%})")
    print(f"checkpoints found damaged        {killed.num_damaged}")
    print(f"logged steps done twice          {killed.num_redone}")
    print(f"loss                             {killed.result['loss']!r}")
    print(f"bit-identical (loss and weights) {same}")
    print(f"seconds undisturbed              {plain.seconds:.1f} without checkpoints,")
    print(f"  with {steps}                       {saved.seconds:.1f}: {cost * 1e3:.1f} ms each")
    print(f"seconds killed {num_kills} times         {killed.seconds:.1f}")
    return 0 if same else 1


def study(num_kills: int) -> int:
    """Kill both processes of a study's sessions; print what came of it."""
    plans = {
        share: make_plan(
            micro(
                **{"recipe": "micro-v3", "budgets": (4 * 10**8, 8 * 10**8, 16 * 10**8)},
                **{"archs": ("mlp", "sgatlin"), "sizes": (1,)},
                **{"share": share, "keep_weights": "all"},
            )
        )
        for share in ("none", "trunks")
    }
    with tempfile.TemporaryDirectory() as name:
        alone = disturb_study(Path(name) / "alone", plans["none"], 0, seed=0)
        killed = disturb_study(Path(name) / "killed", plans["trunks"], num_kills, seed=1)
    same = killed.ends == alone.ends and not killed.left_over
    print(f"{len(alone.ends)} runs of two trunks, a checkpoint after each step")
    print(f"sessions killed                  {killed.kills.total()}")
    for aim in AIMS:
        print(f"  at {aim:<29} {killed.kills[aim]}")
    print(f"processes killed                 {killed.num_processes}")
    print(f"half-written forks left          {killed.num_halves}")
    print(f"runs that began at forks         {killed.num_begun_at_forks} of 4")
    print(f"left in folders of forks         {len(killed.left_over)}")
    print(f"bit-identical (loss and weights) {same}")
    print(f"seconds alone, killed            {alone.seconds:.1f}, {killed.seconds:.1f}")
    return 0 if same else 1


def _is_same(found: Figures, wanted: Figures) -> bool:
    return found.result["loss"] == wanted.result["loss"] and found.weights == wanted.weights


if __name__ == "__main__":
    wanted, what = int((sys.argv[1:] or ["100"])[0]), (sys.argv[2:] or ["sgatlin"])[0]
    sys.exit(study(wanted) if what == "trunks" else main(wanted, what))
