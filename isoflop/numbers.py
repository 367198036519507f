"""How numbers are written for people, everywhere the same."""

from __future__ import annotations

# Far beyond any measured range: such a number is an extrapolation of a flat frontier.
MAX_MULTIPLIER = 1000.0
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


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
