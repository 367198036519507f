"""A study's hypotheses: the rules that decide them, and their verdicts on a fit."""

from __future__ import annotations

from isoflop.analysis.hypotheses.grammar import parse_rule
from isoflop.analysis.hypotheses.judge import Verdict, judge

__all__ = ["Verdict", "judge", "parse_rule"]
