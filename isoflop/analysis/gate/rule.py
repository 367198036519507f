"""The rule by which `isoflop gate` lets a run pass, as a TOML file that can be frozen.

    [gate]
    resource = "flops"               # or wall_s
    pass = "lower bound > 1.0"       # of the multiplier's interval
    fail = "upper bound < 1.0"
    confidence = 0.95
    max_extrapolation = 1.05         # how far beyond the reference's budgets a bound may rest
    runs = "all"                     # of several runs: all have to pass, or any

Keys may be left out. A test is that of a hypothesis' rule (isoflop.analysis.rules): that the lower
bound lies above a number, or the upper bound below one.
"""

from __future__ import annotations

import functools
import hashlib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isoflop.analysis.rules import Rule, parse_rule
from isoflop.errors import UserError
from isoflop.validate import CLOSED, validated

Resource = Literal["flops", "wall_s"]
Together = Literal["all", "any"]

DEFAULT_RULE = """\
[gate]
resource = "flops"
pass = "lower bound > 1.0"
fail = "upper bound < 1.0"
confidence = 0.95
max_extrapolation = 1.05
runs = "all"
"""
"""What holds without a file, as one."""

_TESTS = "[lower bound] > | >= NUMBER or [upper bound] < | <= NUMBER, the number above 0"
_NATURAL = {">": "lower", ">=": "lower", "<": "upper", "<=": "upper"}


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRule:
    """When a run passes, when it fails; undecided is what does neither, fail what does both."""

    resource: Resource
    passes: Rule
    fails: Rule
    confidence: float
    max_extrapolation: float
    """The factor beyond the reference's smallest and largest optimum within which its frontier
    counts; 1: not beyond them at all."""
    runs: Together
    text: str
    """The file."""

    @property
    def sha(self) -> str:
        """The sha256 of the file in hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def default_rule() -> GateRule:
    """Return the rule that holds without a file."""
    return _rule(DEFAULT_RULE, tomllib.loads(DEFAULT_RULE))


def load_rule(path: Path) -> GateRule:
    """Return the rule in a TOML file.

    Raises:
        UserError: no such file, not TOML, an unknown key, or a value that is not allowed.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        return _rule(text, tomllib.loads(text))
    except OSError:
        raise UserError("--rule", str(path), "a readable file", "check the path") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError("--rule", str(path), f"valid TOML ({error})", "correct it") from None


def _rule(text: str, values: dict[str, Any]) -> GateRule:
    keys = validated(_file_type(), values)["gate"]
    given = tomllib.loads(DEFAULT_RULE)["gate"] | keys
    confidence, beyond = given["confidence"], given["max_extrapolation"]
    if not 0 < confidence < 1:
        raise UserError("gate.confidence", confidence, "between 0 and 1", "write 0.95")
    if not (math.isfinite(beyond) and beyond >= 1):
        raise UserError("gate.max_extrapolation", beyond, "a factor of at least 1", "correct it")
    return GateRule(
        resource=given["resource"],
        passes=_test("pass", given["pass"], given["resource"]),
        fails=_test("fail", given["fail"], given["resource"]),
        confidence=confidence,
        max_extrapolation=beyond,
        runs=given["runs"],
        text=text,
    )


@functools.cache
def _file_type() -> Any:
    # As a class it could have no key `pass`; pydantic refuses typing's own below Python 3.12.
    import typing_extensions

    typed_dict: Any = typing_extensions.TypedDict
    keys = {
        "resource": Resource,
        "pass": str,
        "fail": str,
        "confidence": float,
        "max_extrapolation": float,
        "runs": Together,
    }
    gate = typed_dict("gate", keys, total=False)
    file = typed_dict("file", {"gate": gate})
    for table in (gate, file):
        table.__pydantic_config__ = CLOSED
    return file


def _test(name: str, text: str, resource: str) -> Rule:
    # A test alone is the end of a rule of a hypothesis.
    rule = parse_rule(f"multiplier(run, reference, {resource}) {text}")
    is_test = (
        rule is not None
        and _NATURAL.get(rule.comparator) == rule.side
        and rule.number > 0
        and " at " not in text
    )
    if rule is None or not is_test:
        raise UserError(f"gate.{name}", text, _TESTS, "correct it")
    return rule


def words_of(test: Rule) -> str:
    """Return a test as it may stand in the file."""
    return f"{test.side} bound {test.comparator} {test.number:g}"
