"""What outcomes look like in each format, and that a file is either complete or not there."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowmill.errors import InvalidInput
from rowmill.outcome import Outcome, State
from rowmill.results import column_names, formats, json_line
from rowmill_cli.export import export

OUTCOMES = [
    Outcome(1, State.SUCCEEDED, 1, result='"billing"', key='"T-1"', columns='{"ticket_id": "T-1", "age": 3}'),
    Outcome(2, State.FAILED, 5, error_class="HTTP503", error_message='said "no",\nthen went', key="2"),
    Outcome(3, State.DEDUPLICATED, 0, result='{"a":\n [1, "é"]}', key='["x", 1]', duplicate_of="ns/other/1#9"),
    Outcome(4, State.SUCCEEDED, 2, result="null", key=None, columns='{"ticket_id": null, "age": {"b": 1}}'),
    Outcome(5, State.SUCCEEDED, 1, result='"half \\ud83d of a pair"', key="null"),
]


async def pages(outcomes: Sequence[Outcome], size: int = 2) -> AsyncIterator[list[Outcome]]:
    for start in range(0, len(outcomes), size):
        yield list(outcomes[start : start + size])


async def test_jsonl_has_the_fixed_keys_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    assert await export(pages(OUTCOMES), path) == 5
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5]
    assert list(lines[1]) == ["seq", "key", "state", "attempts", "result", "error"]
    assert lines[1] == {
        "seq": 2,
        "key": 2,
        "state": "Failed",
        "attempts": 5,
        "result": None,
        "error": {"class": "HTTP503", "message": 'said "no",\nthen went'},
    }
    assert lines[0]["columns"] == {"ticket_id": "T-1", "age": 3}
    assert lines[2] == {
        "seq": 3,
        "key": ["x", 1],
        "state": "Deduplicated",
        "attempts": 0,
        "result": {"a": [1, "é"]},
        "error": None,
        "duplicateOf": "ns/other/1#9",
    }


def test_a_line_is_one_line_whatever_the_result_looked_like() -> None:
    outcome = Outcome(1, State.SUCCEEDED, 1, result='{"a":\r\n1}', key='"\\n"')
    assert "\n" not in json_line(outcome)
    assert "\r" not in json_line(outcome)
    assert json.loads(json_line(outcome))["key"] == "\n"


async def test_csv_carries_texts_as_they_are_and_the_rest_as_json(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    await export(pages(OUTCOMES), path, columns=["ticket_id", "age"])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("seq", "key", "state", "attempts", "result", "error_class", "error_message", "duplicate_of"),
        *("ticket_id", "age"),
    ]
    assert (rows[0]["key"], rows[0]["result"], rows[0]["ticket_id"], rows[0]["age"]) == ("T-1", "billing", "T-1", "3")
    assert (rows[1]["key"], rows[1]["error_message"]) == ("2", 'said "no",\nthen went')
    assert (rows[2]["key"], rows[2]["duplicate_of"]) == ('["x", 1]', "ns/other/1#9")
    assert json.loads(rows[2]["result"]) == {"a": [1, "é"]}
    assert (rows[3]["result"], rows[3]["ticket_id"], json.loads(rows[3]["age"])) == ("", "", {"b": 1})
    assert rows[4]["result"] == "half \\ud83d of a pair"


async def test_parquet_has_the_documented_types_and_bounded_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "ROW_GROUP_ROWS", 2)
    path = tmp_path / "results.parquet"
    await export(pages(OUTCOMES, 3), path, columns=["ticket_id"])
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    assert schema.field("seq").type == pa.int64()
    assert schema.field("attempts").type == pa.int32()
    assert {schema.field(name).type for name in ("key", "state", "result", "ticket_id")} == {pa.string()}
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 1]
    table = file.read().to_pylist()
    assert [row["seq"] for row in table] == [1, 2, 3, 4, 5]
    assert table[0]["result"] == "billing"
    assert table[3]["result"] is None
    assert table[1]["error_class"] == "HTTP503"


async def test_a_large_page_is_flushed_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ROW_GROUP_BYTES", 10_000)
    large = [Outcome(seq, State.SUCCEEDED, 1, result=json.dumps("x" * 6_000)) for seq in range(1, 5)]
    path = tmp_path / "results.parquet"
    await export(pages(large), path)
    assert pq.ParquetFile(path).num_row_groups == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
async def test_no_outcome_at_all_is_a_readable_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    assert await export(pages([]), path, columns=["a"]) == 0
    if suffix == ".parquet":
        assert pq.read_table(path).num_rows == 0
    else:
        assert len(path.read_text().splitlines()) == (1 if suffix == ".csv" else 0)


async def test_only_the_states_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    assert await export(pages(OUTCOMES), path, include=[State.FAILED]) == 1
    assert json.loads(path.read_text())["seq"] == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
async def test_what_was_there_stays_until_all_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    path.write_text("before\n")

    async def cut() -> AsyncIterator[list[Outcome]]:
        yield OUTCOMES[:2]
        raise ConnectionError("the ledger went away")

    with pytest.raises(ConnectionError):
        await export(cut(), path)
    assert path.read_text() == "before\n"
    assert os.listdir(tmp_path) == [path.name]  # nothing half-written beside it


async def test_another_suffix_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.jsonl, \.csv or \.parquet"):
        await export(pages(OUTCOMES), tmp_path / "results.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written there"):
        await export(pages(OUTCOMES), tmp_path / "file" / "results.csv")


def test_a_source_column_never_hides_one_of_ours() -> None:
    names = column_names(["result", "seq", "source_seq"])
    assert names[-3:] == ["source_result", "source_seq", "source_source_seq"]
    assert len(set(names)) == len(names)
