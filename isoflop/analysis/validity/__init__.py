"""How far the answers of a fit depend on choices that were made: one long table of findings."""

from __future__ import annotations

from isoflop.analysis.validity.checks import Validity, validity
from isoflop.analysis.validity.finding import Finding

__all__ = ["Finding", "Validity", "validity"]
