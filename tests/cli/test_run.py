"""What `isoflop run` says when it is interrupted, again and again."""

from __future__ import annotations

import pytest

from isoflop.cli.run import Interrupts


def test_the_first_signal_saves_the_second_says_how_to_hurry_the_third_ends() -> None:
    interrupts = Interrupts()
    assert interrupts.line(2) is None
    with pytest.raises(KeyboardInterrupt):
        interrupts.on_signal(2, None)
    assert interrupts.line(2) == "stopping, saving 2 runs"
    # Once for each signal, however often it is asked for.
    assert interrupts.line(2) is None
    interrupts.on_signal(2, None)
    assert (interrupts.line(1) or "").startswith("still saving 1 run; once more ends them at once")
    assert not interrupts.in_a_hurry
    interrupts.on_signal(15, None)
    assert interrupts.in_a_hurry
    assert interrupts.line(1) == "ending 1 run at once"
