"""Results that are vectors, as a column of lists of numbers. Pure, but for the arrow arrays that it makes.

Whether a job's results are vectors is decided by its executor alone, never by its rows: the files of a job have one
schema, whichever rows are in them. What is no list of numbers all the same (a template that made a list of texts, an
endpoint that answers something else) goes into a column of its own as JSON, so that nothing is lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from rowmill.spec import Spec

Vectors = Literal["Float32", "Float64"]
"""The type of a vector's numbers. Float32 holds all that a model of the worker's own computes in; a server's numbers
may be of any precision."""

OTHER_RESULTS: Final = "result_json"
"""The column of results that are no vectors, in files whose results are vectors."""

_CODES: Final[Mapping[str, str]] = {"Float32": "f", "Float64": "d"}
_INFINITE: Final[Mapping[str, float]] = {"Float32": 3.4028235677973366e38, "Float64": float("inf")}
"""From where on a double has no single beside it but infinity."""

_decode: Final = msgspec.json.Decoder(list[float]).decode


def vectors_of(spec: Spec) -> Vectors | None:
    """The type of a job's results where they are vectors, else None."""
    return vectors_of_frozen(
        {"mode": spec.mode, "executor": spec.executor.model_dump(mode="json", by_alias=True, exclude_none=True)}
    )


def vectors_of_frozen(frozen: Mapping[str, Any]) -> Vectors | None:
    """As `vectors_of`, of what a run recorded (`rowmill.spec.frozen_part`)."""
    executor = frozen.get("executor", {})
    if frozen.get("mode") == "Simulate":
        return None  # a result is what would have been sent
    if "embeddings" in executor:
        return "Float32"
    openai = executor.get("openai", {})
    if openai.get("endpoint") != "Embeddings" or "result" in openai or not isinstance(openai.get("input"), str):
        return None
    parameters = openai.get("parameters", {})
    return "Float64" if parameters.get("encoding_format", "float") == "float" else None


class VectorColumn:
    """The vectors of one row group, as compact as they will be written."""

    def __init__(self, numbers: Vectors) -> None:
        self._code, self._infinite = _CODES[numbers], _INFINITE[numbers]
        self._values: array[float] = array(self._code)
        self._offsets: list[int | None] = []

    def append(self, result: str | None) -> bool:
        """The next row's result; False where it is no vector, and the row is to have none."""
        vector: list[float] = []
        found = result is not None
        if result is not None:
            try:
                vector = _decode(result)
                found = all(-self._infinite < number < self._infinite for number in vector)
            except msgspec.DecodeError:
                found = False
        self._offsets.append(len(self._values) if found else None)
        if found:
            self._values.extend(vector)
        return found

    def take(self, pa: Any) -> Any:
        """What was appended, as an arrow array of lists; begins anew."""
        offsets = pa.array([*self._offsets, len(self._values)], pa.int32())
        numbers = pa.float32() if self._code == "f" else pa.float64()
        values = pa.Array.from_buffers(numbers, len(self._values), [None, pa.py_buffer(self._values)])
        # Others may still look at what the buffer holds.
        self._values, self._offsets = array(self._code), []
        return pa.ListArray.from_arrays(offsets, values)
