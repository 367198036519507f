"""How numbers are written for people, everywhere the same, and read as people write them."""

from __future__ import annotations

import re

# Far beyond any measured range: such a number is an extrapolation of a flat frontier.
MAX_MULTIPLIER = 1000.0
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))

_PLAIN = r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
# A first group of zeros is no thousands: 0,123 has a decimal comma.
_THOUSANDS = r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?:e[+-]?\d+)?"
_NUMBER = re.compile(rf"({_PLAIN}|{_THOUSANDS})\s*([a-z]+|%)?", re.ASCII)
_POWER = re.compile(rf"(?:({_PLAIN})\s*[*x×·]\s*)?(\d+)\s*(?:\^|\*\*)\s*([+-]?\d+)", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)")
_FACTORS = {
    **dict.fromkeys(("k", "thousand"), 1e3),
    **dict.fromkeys(("m", "mn", "million"), 1e6),
    **dict.fromkeys(("b", "bn", "g", "billion"), 1e9),
    **dict.fromkeys(("t", "tn", "trillion"), 1e12),
}


def format_flops(flops: int | float, digits: int = 5) -> str:
    """Return FLOPs to some significant digits, as people write them: 1e17, 1.5e19, 2.25e10."""
    mantissa, exponent = f"{float(flops):.{digits - 1}e}".split("e")
    return f"{_strip(mantissa)}e{int(exponent)}"


def format_count(count: int | float, digits: int = 3) -> str:
    """Return a count to some significant digits, with a unit: 950, 12.3k, 1.05M, 7B."""
    # Rounded first, so that 999,999 becomes 1M and not 1000k.
    rounded = float(f"{count:.{digits}g}")
    for size, unit in _UNITS:
        if size <= rounded < 1e15:
            return f"{_strip(f'{rounded / size:#.{digits}g}')}{unit}"
    return f"{rounded:.{digits}g}"


def format_multiplier(multiplier: float, digits: int = 2) -> str:
    """Return a multiplier to some decimals; what no table can mean is "> 1000" or "< 0.001"."""
    if multiplier > MAX_MULTIPLIER:
        return f"> {MAX_MULTIPLIER:g}"
    if multiplier < 1 / MAX_MULTIPLIER:
        return f"< {1 / MAX_MULTIPLIER:g}"
    return f"{multiplier:.{digits}f}"


def read_number(text: str) -> float:
    """Return a number as people write it: 1e18, 125M, 3.5 B, 16,517,336, 1_000, 12 %, 2^20.

    A percentage is divided by 100. Commas are read between groups of three digits alone, since
    1,5 may be one and a half or two numbers.

    Raises:
        ValueError: it is none of these.
    """
    plain = text.strip().lower().replace("\N{MINUS SIGN}", "-")
    if found := _NUMBER.fullmatch(plain):
        digits, unit = found.groups()
        number = float(digits.replace(",", ""))
        if unit is None:
            return number
        if unit == "%":
            return number / 100
        if unit in _FACTORS:
            return number * _FACTORS[unit]
    elif found := _POWER.fullmatch(plain):
        times, base, exponent = found.groups()
        try:
            return float(times or 1) * float(base) ** int(exponent)
        except (OverflowError, ZeroDivisionError):
            pass
    elif _NOT_FINITE.fullmatch(plain):
        return float(plain)
    raise ValueError(f"{text[:60]!r} is no number")


def round_up(count: int, digits: int) -> int:
    """Return the next whole number with so many significant digits: 12,301 to two is 13,000."""
    grain: int = 10 ** max(0, len(str(count)) - digits)
    return -(-count // grain) * grain


def format_seconds(seconds: float) -> str:
    """Return a duration to the second below an hour: 45s, 3m20s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _strip(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number
