"""What counts as a number where anything may come."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """True for finite ints and floats (bools apart)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
