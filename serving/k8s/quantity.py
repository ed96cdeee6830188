"""Parse Kubernetes quantities."""

import decimal
import re

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity
_QUANTITY = re.compile(r"(?P<number>[+-]?(\d+(\.\d*)?|\.\d+))(?P<suffix>[numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?", re.ASCII)
_DECIMAL_POWERS = dict(zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True))
_BINARY_POWERS = {f"{letter}i": 10 * power for power, letter in enumerate("KMGTPE", start=1)}


def parse_quantity(value: str | int | float) -> decimal.Decimal:
    """Parse a Kubernetes quantity such as "500m", "2Gi" or 2. Raises ValueError."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a quantity such as 2, 500m or 2Gi")
    number, suffix = decimal.Decimal(match["number"]), match["suffix"] or ""
    if suffix in _BINARY_POWERS:
        return number * decimal.Decimal(2) ** _BINARY_POWERS[suffix]
    if suffix in _DECIMAL_POWERS:
        return number.scaleb(_DECIMAL_POWERS[suffix])
    return number.scaleb(int(suffix[1:])) if suffix else number
