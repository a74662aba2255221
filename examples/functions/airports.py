"""What examples/python.yaml runs: how far an airport is from another one, over the round of the earth."""

from __future__ import annotations

import math

from rowmill.functions import PermanentError, row_function

EARTH_KM = 6_371.0


@row_function
def distance(*, row: dict[str, str], latitude: float, longitude: float) -> dict[str, float | str]:
    """Kilometres from the airport of `row` to the place given."""
    try:
        here = math.radians(float(row["latitude"])), math.radians(float(row["longitude"]))
    except ValueError:
        raise PermanentError(f"airport {row['iata']} has no position", error_class="NoPosition") from None
    there = math.radians(latitude), math.radians(longitude)
    half = (
        math.sin((there[0] - here[0]) / 2) ** 2
        + math.cos(here[0]) * math.cos(there[0]) * math.sin((there[1] - here[1]) / 2) ** 2
    )
    return {"airport": row["iata"], "kilometres": round(2 * EARTH_KM * math.asin(math.sqrt(half)), 1)}
