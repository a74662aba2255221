"""`examples/embeddings.yaml` as it stands, by `rowmill run`, on the model that it names."""

from __future__ import annotations

import math
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowmill_worker.children.embedder import serve_model
from rowmill_worker.executors.embeddings import LOADER
from tests.integration.test_examples_run import table
from tests.support import examples as support
from tests.unit.test_embedding_models import settings_of, vectors

NAME = "sentence-transformers/all-MiniLM-L6-v2"
DIMENSIONS = 384
PROGRAM = "import sys; from rowmill_cli.main import main; sys.exit(main())"


@pytest.fixture
def model() -> Path:
    """Where the real model lies."""
    folder = os.environ.get("ROWMILL_EMBEDDING_MODEL")
    if folder is None:
        pytest.fail("there is no real model here; `make models` runs this in an environment that has one")
    return Path(folder)


def hub_with(model: Path, folder: Path) -> Path:
    """A cache of the hub that holds the model under the name by which the manifest asks for it."""
    inside = folder / "hub" / f"models--{NAME.replace('/', '--')}"
    (inside / "refs").mkdir(parents=True)
    (inside / "refs" / "main").write_text("0" * 40)
    (inside / "snapshots").mkdir()
    (inside / "snapshots" / ("0" * 40)).symlink_to(model, target_is_directory=True)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")
async def test_airports_become_vectors_of_the_model(
    model: Path, tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rowmill"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    program.chmod(0o700)
    monkeypatch.setattr(support, "ROWMILL", str(program))
    monkeypatch.setattr(support, "SECONDS", 500.0)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ROWMILL_", "HF_"))}
    environ |= {"ROWMILL_REDIS_URL": redis_url, "ROWMILL_POSTGRES_DSN": postgres_dsn}
    environ |= {"HF_HOME": str(hub_with(model, tmp_path / "huggingface")), "HF_HUB_OFFLINE": "1"}
    examples = support.Examples(tmp_path, environ)
    await examples.run("embeddings.yaml")
    written = pq.read_table(examples.path("airport-vectors.parquet"))
    assert written.schema.field("result").type == pa.list_(pa.float32())
    found, rows = written.to_pylist(), table(500)
    assert [line["iata"] for line in found] == [row["iata"] for row in rows]
    assert {line["state"] for line in found} == {"Succeeded"}
    for line in found:
        assert len(line["result"]) == DIMENSIONS
        assert math.hypot(*line["result"]) == pytest.approx(1.0, abs=1e-5)
    assert {line["result_json"] for line in found} == {None}
    await examples.rowmill("results", "--state", examples.state("embeddings.yaml"), "--output", tmp_path / "b.parquet")
    again = pq.read_table(tmp_path / "b.parquet")
    assert again.column("result") == written.column("result"), "what kind of results they are, the ledger knows"
    _is_what_the_model_says(found, rows, model)


def _is_what_the_model_says(found: list[dict[str, Any]], rows: list[dict[str, str]], model: Path) -> None:
    """By the library itself, and each beside others than it was embedded with."""
    texts = [f"{row['name']}, {row['city']}, {row['state']}" for row in rows]
    own = import_module("sentence_transformers").SentenceTransformer(str(model), device="cpu")
    some = range(0, 500, 25)
    expected = own.encode([texts[i] for i in some], normalize_embeddings=True, show_progress_bar=False)
    for i, vector in zip(some, expected, strict=True):
        assert found[i]["result"] == pytest.approx([float(number) for number in vector], abs=1e-4)
    (alone,) = vectors(serve_model(settings_of(LOADER, str(model))), [texts[7]])
    assert found[7]["result"] == pytest.approx(alone, abs=1e-4)
