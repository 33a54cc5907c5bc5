"""How numbers are written, in tables and in sentences alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtl_jax.studies.stats.intervals import LEVEL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mtl_jax.studies.stats.intervals import Interval

MISSING = "—"


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals and a real minus sign."""
    if value is None:
        return MISSING
    text = f"{value:,.{digits}f}"
    zero = f"{0:.{digits}f}"
    return (zero if text == f"-{zero}" else text).replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: always with its sign, but for a zero."""
    text = fixed(value, digits)
    return f"+{text}" if value is not None and value > 0 and float(text.replace(",", "")) else text


def plus_minus(interval: Interval | None) -> str:
    """``± half width``; empty where there is no interval."""
    half = interval.half_width if interval else None
    return "" if half is None else f"± {fixed(half)}"


def limits(interval: Interval) -> str:
    """``[low, high]``; empty where there is no interval."""
    if interval.low is None:
        return ""
    return f"[{signed(interval.low)}, {signed(interval.high)}]"


def p_text(p_value: float | None) -> str:
    """A p-value, never written as 0; one above the level of the tests never as if at it."""
    if p_value is None:
        return MISSING
    text, digits = fixed(p_value), 3
    while p_value > LEVEL and float(text) <= LEVEL:
        digits += 1
        text = fixed(p_value, digits)
    return "< 0.001" if p_value < 0.001 else text


def p_equals(p_value: float) -> str:
    """The same after a letter: ``= 0.031``, ``< 0.001``."""
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def decimals(values: Iterable[float | None]) -> int:
    """Decimals for a column of positive numbers: enough for its smallest, the same for all."""
    smallest = min((value for value in values if value), default=1.0)
    return 2 if smallest < 1 else 1 if smallest < 100 else 0


def ratio(value: float | None, reference: float | None) -> str:
    """``value / reference`` to two significant digits; empty without a reference."""
    if not value or not reference:
        return ""
    quotient = value / reference
    digits = 2 if quotient < 9.95 else 0
    return "< 0.01×" if quotient < 0.005 else f"{quotient:,.{digits}f}×"


def factor(cost: float, other: float, unit: str) -> str:
    """``cost`` against ``other`` in words: "5.0× fewer training FLOPs"."""
    quotient = max(cost, other) / min(cost, other)
    if quotient < 1.05:
        return f"about the same {unit}"
    return (
        f"{quotient:,.{1 if quotient < 9.95 else 0}f}× {'fewer' if cost < other else 'more'} {unit}"
    )


def flops(count: float | None) -> str:
    """Floating-point operations in units of 1,000: "1.41 T"."""
    if count is None:
        return MISSING
    for unit in ("", "k", "M", "G", "T", "P"):
        # As the rounded number would be written.
        if float(f"{count:.3g}") < 1000:
            return f"{count:.3g} {unit}".rstrip()
        count /= 1000
    return f"{count:,.3g} E"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """``[smallest, largest]``; empty without several values."""
    if len(values) < 2:
        return ""
    return f"[{fixed(min(values), digits)}, {fixed(max(values), digits)}]"


def byte_size(count: float | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:,.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def score_of(number: str, name: str) -> str:
    """A score by its name: ``0.800 macro-F1``, ``a score of 0.800``; see ``results.score_name``."""
    return f"a score of {number}" if name == "score" else f"{number} {name}"


def capital(text: str) -> str:
    """The same with a capital in front."""
    return text[:1].upper() + text[1:]


def count_of(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``, ``2 classes``."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def listing(names: Sequence[str]) -> str:
    """``a, b and c``, each in code style."""
    return series([f"`{name}`" for name in names])


def series(texts: Sequence[str]) -> str:
    """``a, b and c``."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
