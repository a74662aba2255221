"""Results that are vectors, in Parquet: lists of numbers of one type a job, and nothing else is lost beside them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.outcome import Outcome, State
from rowmill.results import Vectors, column_names, formats, outcome_writer, vectors_of, vectors_of_frozen
from rowmill.spec import frozen_part, parse_job
from rowmill_operator.results.checkpoint import Shape

EMBEDDINGS = {"embeddings": {"model": "m", "text": "x"}}


def openai(**fields: Any) -> dict[str, Any]:
    return {"openai": {"baseUrl": "http://o/v1", "model": "m", "endpoint": "Embeddings", "input": "x", **fields}}


@pytest.mark.parametrize(
    ("executor", "mode", "vectors"),
    [
        (EMBEDDINGS, "Run", "Float32"),
        ({"embeddings": {"model": "m", "text": "x", "dtype": "BFloat16"}}, "Run", "Float32"),
        (EMBEDDINGS, "Simulate", None),
        (openai(), "Run", "Float64"),
        (openai(input="{{ row.text }}", batching={}, parameters={"encoding_format": "float"}), "Run", "Float64"),
        (openai(parameters={"encoding_format": "base64"}), "Run", None),
        (openai(input=["a", "b"]), "Run", None),
        (openai(result="data[0].embedding"), "Run", None),
        (openai(endpoint="Completions", prompt="x", input=None), "Run", None),
        ({"python": {"function": "a:b"}}, "Run", None),
        ({"http": {"url": "http://h/"}}, "Run", None),
    ],
)
def test_the_type_follows_from_the_spec_alone(executor: dict[str, Any], mode: str, vectors: Vectors | None) -> None:
    spec = parse_job(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "j"},
            "spec": {"source": {"uri": "a.csv"}, "executor": executor, "mode": mode},
        },
        where="test",
    ).spec
    assert vectors_of(spec) == vectors
    assert vectors_of_frozen(json.loads(json.dumps(frozen_part(spec)))) == vectors, "from the ledger alone"


def written(outcomes: Sequence[Outcome], vectors: Vectors, *, size: int = 3) -> bytes:
    file = io.BytesIO()
    writer = outcome_writer("Parquet", file, ("result_json",), vectors=vectors)
    for start in range(0, len(outcomes), size):
        writer.write(outcomes[start : start + size])
    writer.close()
    return file.getvalue()


def single(number: float) -> float:
    (found,) = struct.unpack("f", struct.pack("f", number))
    assert isinstance(found, float)
    return found


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
RESULTS = st.one_of(
    st.none(),
    st.lists(NUMBERS, max_size=5).map(json.dumps),
    st.sampled_from(['"text"', "[[1.0], [2.0]]", '{"a": [1]}', "[1, null]", "[true]", "null", "[1e39]", "7"]),
)


@settings(max_examples=40)
@given(results=st.lists(RESULTS, max_size=12), rows=st.integers(1, 4), page=st.integers(1, 5))
def test_every_result_is_a_vector_or_stands_as_json_whatever_rows_a_file_has(
    results: list[str | None], rows: int, page: int
) -> None:
    outcomes = [
        Outcome(seq, State.FAILED, 1, error_class="Timeout", error_message="late")
        if result is None
        else Outcome(seq, State.SUCCEEDED, 1, result=result, columns='{"result_json": 5}')
        for seq, result in enumerate(results, 1)
    ]
    patch = pytest.MonkeyPatch()
    with patch.context() as short:
        short.setattr(formats, "ROW_GROUP_ROWS", rows)
        data = written(outcomes, "Float32", size=page)
        assert written(outcomes, "Float32", size=len(outcomes) + 1) == data, "the same bytes however they came"
    table = pq.read_table(io.BytesIO(data))
    assert table.schema.field("result").type == pa.list_(pa.float32())
    assert table.schema.names == column_names(("result_json",), vectors="Float32")
    for result, row in zip(results, table.to_pylist(), strict=True):
        numbers = json.loads(result) if result is not None else None
        plain = isinstance(numbers, list) and all(type(n) in (int, float) and abs(n) < 3.5e38 for n in numbers)
        assert row["result"] == (numbers if plain else None)
        assert row["result_json"] == (None if plain or numbers is None else result)
        assert row["source_result_json"] == (None if result is None else "5")


def test_nine_digits_are_exact_in_single_and_a_server_s_own_in_double() -> None:
    numbers = [0.1, -1.17549435e-38, 3.40282347e38, 0.0345678912]
    outcome = Outcome(1, State.SUCCEEDED, 1, result=json.dumps(numbers))
    (one,) = pq.read_table(io.BytesIO(written([outcome], "Float32"))).column("result").to_pylist()
    assert one == [single(number) for number in numbers]
    outcome = Outcome(1, State.SUCCEEDED, 1, result="[0.1234567890123456, 1e39, 3]")
    table = pq.read_table(io.BytesIO(written([outcome], "Float64")))
    assert table.schema.field("result").type == pa.list_(pa.float64())
    assert table.column("result").to_pylist() == [[0.1234567890123456, 1e39, 3.0]]


def test_a_file_without_a_vector_has_the_same_schema() -> None:
    some = [Outcome(1, State.SUCCEEDED, 1, result="[1.5, 2]")]
    none = [Outcome(2, State.FAILED, 1, error_class="Timeout", error_message="late")]
    schemas = {pq.read_schema(io.BytesIO(written(outcomes, "Float32"))) for outcomes in (some, none, [])}
    assert len(schemas) == 1


@pytest.mark.parametrize("format", ["JSONL", "CSV"])
def test_other_formats_hold_the_list_as_json(format: str) -> None:
    file = io.BytesIO()
    writer = outcome_writer(format, file, vectors="Float32")
    writer.write([Outcome(1, State.SUCCEEDED, 1, result="[1.5,2]")])
    writer.close()
    assert b"[1.5,2]" in file.getvalue()
    assert b"result_json" not in file.getvalue()


def test_parts_of_text_are_written_anew_as_vectors_and_no_others() -> None:
    everything, columns = frozenset(State), ("a",)
    plain = Shape("Parquet", everything, columns)
    assert Shape("Parquet", everything, columns, "Float32").digest != plain.digest
    assert Shape("JSONL", everything, columns, "Float32").digest == Shape("JSONL", everything, columns).digest
    assert plain.digest == "1835c4e8bf7f3c11", "as it was before there were vectors: nothing is written again"
