"""Optional vectorised C++ for CPU: compiled at first use where there is a compiler."""

from __future__ import annotations
