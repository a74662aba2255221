"""Every manifest of `examples/` as it stands, by `rowmill run`, on real stores, against servers that speak protocols.

Nothing of a manifest changes but the host and port that it calls. Secrets come as README and the manifests say: by the
environment. Those for a cluster are applied in `test_examples_applied.py`, and the demo's is run by `test_demo.py`.
"""

from __future__ import annotations

import csv
import inspect
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from examples.textservice.service import Unusable, describe
from tests.support.comfyui_server import MODELS, ComfyUIServer, png
from tests.support.dify_server import DifyServer, Plan
from tests.support.examples import EXAMPLES, Examples, TextService
from tests.support.model_double import ModelDouble
from tests.support.openai_server import Asked, OpenAIServer, Reply, chat

TEXT_SERVICE, MODEL_SERVER = "127.0.0.1:8765", "127.0.0.1:8000"
SUCCEEDED = "Succeeded"


@pytest.fixture
def examples(tmp_path: Path, redis_url: str, postgres_dsn: str) -> Examples:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ROWMILL_")}
    return Examples(tmp_path, {**environ, "ROWMILL_REDIS_URL": redis_url, "ROWMILL_POSTGRES_DSN": postgres_dsn})


def table(limit: int | None = None) -> list[dict[str, str]]:
    """The table of the examples."""
    with (EXAMPLES / "data" / "us-airports.csv").open(newline="", encoding="utf-8") as file:
        return list(islice(csv.DictReader(file), limit))


def results(lines: list[dict[str, Any]]) -> list[Any]:
    """Each row's result; every one succeeded, at the first attempt, and they are in the order of the table."""
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert {(line["state"], line["attempts"]) for line in lines} == {(SUCCEEDED, 1)}
    return [line["result"] for line in lines]


# -- A: rows of a sheet through a Dify workflow


async def test_questions_go_through_a_dify_workflow(examples: Examples) -> None:
    key = "app-of-this-test"
    labels = {"How do I change my address?": "account", "My invoice is wrong.": "billing"}
    server = DifyServer(key=key, plan=lambda asked: Plan(outputs={"label": labels.get(asked["inputs"]["text"], "end")}))
    examples.environ["DIFY_API_KEY"] = key
    async with server as url:
        examples.point("dify.yaml", "127.0.0.1:8080", url)
        await examples.run("dify.yaml")
    lines = examples.results("dify.yaml")
    assert results(lines) == ["account", "billing", "end"]
    assert [line["columns"] for line in lines] == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert sorted(asked["inputs"]["text"] for asked in server.asked) == sorted([*labels, "Please cancel my order."])
    assert set(server.paths) == {"/v1/workflows/run"}


# -- C: orders of images, and a declared key


async def test_an_order_of_images_is_made_once(examples: Examples) -> None:
    server = ComfyUIServer()
    async with server as url:
        examples.point("comfyui.yaml", "127.0.0.1:8188", url)
        await examples.run("comfyui.yaml")
    lines = examples.results("comfyui.yaml")
    assert len(server.asked) == 2, "an order was paid for twice"
    prompts = {asked["prompt"]["9"]["inputs"]["filename_prefix"]: asked["prompt"] for asked in server.asked}
    assert {name: prompt["3"]["inputs"]["seed"] for name, prompt in prompts.items()} == {
        "orders/A-17": 17,
        "orders/B-02": 2,
    }
    assert all(prompt["4"]["inputs"]["ckpt_name"] in MODELS for prompt in prompts.values())
    assert Counter(line["state"] for line in lines) == {SUCCEEDED: 2, "Deduplicated": 1}
    assert lines[0]["result"] == lines[2]["result"], "a duplicate has the result of its winner"
    for line, text in (
        (lines[0], "a lighthouse at dusk, watercolour"),
        (lines[1], "a bowl of cherries, oil on canvas"),
    ):
        (uri,) = map(Path, line["result"])
        assert uri.is_relative_to(examples.path("images"))
        assert uri.read_bytes() == png(json.dumps([None, None, None, text, "text, watermark", None, None]))


async def test_a_key_is_sent_once(examples: Examples) -> None:
    service = TextService()
    async with service.serve() as url:
        examples.point("dedupe.yaml", TEXT_SERVICE, url)
        await examples.run("dedupe.yaml")
    lines = examples.results("dedupe.yaml")
    assert sorted(call["name"] for call in service.calls) == ["Livingston Muni", "Perry-Warsaw"]
    assert Counter((line["key"], line["state"]) for line in lines) == {
        ("A-17", SUCCEEDED): 1,
        ("A-17", "Deduplicated"): 2,
        ("B-02", SUCCEEDED): 1,
    }
    assert {line["result"]["slug"] for line in lines if line["key"] == "A-17"} == {"perry-warsaw-perry-ny"}


# -- D: texts through an embedding model


MODEL_IN_PLACE = """
import json, sys, types
from tests.support.model_double import load

def noted(settings):
    with open({told!r}, "w") as file:
        json.dump(settings, file)
    return load({{**settings, "model": "double-16"}})

sys.modules["rowmill_worker.children.sentence_model"] = types.SimpleNamespace(load=noted)
"""
"""Put before everything that the worker's processes import: all is as always, but for the model itself."""


async def test_texts_become_vectors_in_a_worker_of_their_own(examples: Examples) -> None:
    told = examples.folder / "settings.json"
    (examples.folder / "sitecustomize.py").write_text(MODEL_IN_PLACE.format(told=str(told)))
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    examples.environ["PYTHONPATH"] = os.pathsep.join([str(examples.folder), str(EXAMPLES.parent), *before])
    await examples.run("embeddings.yaml")
    settings = json.loads(told.read_text())
    assert settings["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (settings["device"], settings["onTooLong"], settings["maxSize"]) == ("Auto", "Fail", 32)
    rows = table(500)
    found = pq.read_table(examples.path("airport-vectors.parquet")).to_pylist()
    assert [line["iata"] for line in found] == [row["iata"] for row in rows]
    texts = [f"{row['name']}, {row['city']}, {row['state']}" for row in rows]
    wanted = ModelDouble(fits=len(rows), most=32, normalize=True).encode(texts)
    assert [line["result"] for line in found] == [pytest.approx(vector, rel=1e-6) for vector in wanted]


# -- E: tickets through an agent service


URGENCY = {"T-1": "high", "T-2": "normal", "T-3": "low"}


def triaged(asked: Asked) -> Reply | None:
    """What a model answers that heeds the schema."""
    told = asked.body["messages"][1]["content"]
    assert asked.body["messages"][0]["content"] == "You triage support tickets. Answer in JSON."
    assert asked.body["response_format"]["json_schema"]["name"] == "triage"
    assert (asked.body["model"], asked.body["temperature"], asked.body["max_tokens"]) == ("Qwen/Qwen3-8B", 0, 512)
    number = told.removeprefix("Ticket ").partition(":")[0]
    return Reply(chat(json.dumps({"urgency": URGENCY[number], "topic": told.split()[-1]}), tokens=(20, 5)))


async def test_tickets_are_triaged_by_a_model_server(examples: Examples) -> None:
    server = OpenAIServer(plan=triaged)
    async with server as url:
        examples.point("openai.yaml", MODEL_SERVER, url)
        await examples.run("openai.yaml")
    lines = examples.results("openai.yaml")
    assert [line["key"] for line in lines] == list(URGENCY)
    topics = ["hurry.", "again?", "now!"]
    assert results(lines) == [
        {"urgency": urgency, "topic": topic} for urgency, topic in zip(URGENCY.values(), topics, strict=True)
    ]
    assert [path for path, _, _ in server.answered] == ["/v1/chat/completions"] * 3


async def test_a_file_of_the_batch_api_runs_unchanged(examples: Examples) -> None:
    async with OpenAIServer(model="Qwen/Qwen3-8B") as url:
        examples.point("openai-batch.yaml", MODEL_SERVER, url)
        await examples.run("openai-batch.yaml")
    written = examples.folder / "batch_output.jsonl"
    state = examples.state("openai-batch.yaml")
    await examples.rowmill("results", "--state", state, "--format", "openai", "--output", written)
    answers = [json.loads(line) for line in written.read_text("utf-8").splitlines()]
    assert [one["custom_id"] for one in answers] == ["request-1", "request-2"]
    spoken = [one["response"]["body"]["choices"][0]["message"]["content"] for one in answers]
    assert spoken == ["NAME A COLOUR.", "NAME A FRUIT."]
    assert not (examples.folder / "batch_error.jsonl").exists()


# -- a function, and the service of the examples


async def test_a_function_runs_for_each_row(examples: Examples) -> None:
    await examples.run("python.yaml")
    lines = examples.results("python.yaml")
    rows = table(200)
    assert [found["airport"] for found in results(lines)] == [row["iata"] for row in rows]
    for found, row in zip(results(lines), rows, strict=True):
        assert found["kilometres"] == pytest.approx(from_denver(row), abs=0.5)


def from_denver(row: Mapping[str, str]) -> float:
    """By the law of cosines, which the example does not use."""
    here, there = math.radians(float(row["latitude"])), math.radians(39.8617)
    between = math.radians(float(row["longitude"]) + 104.6731)
    cosine = math.sin(here) * math.sin(there) + math.cos(here) * math.cos(there) * math.cos(between)
    return 6_371.0 * math.acos(min(1.0, cosine))


async def test_the_smallest_job_runs(examples: Examples) -> None:
    async with TextService().serve() as url:
        examples.point("inline-rows.yaml", TEXT_SERVICE, url)
        await examples.run("inline-rows.yaml")
    lines = examples.results("inline-rows.yaml")
    assert results(lines) == [
        "ohare-international-chicago-il",
        "san-jose-international-san-jose-ca",
        "ely-airport-ely-nv",
    ]


async def test_a_group_goes_no_faster_than_it_says(examples: Examples) -> None:
    service = TextService()
    async with service.serve() as url:
        examples.point("limits.yaml", TEXT_SERVICE, url)
        await examples.run("limits.yaml")
    lines = examples.results("limits.yaml")
    assert [found["slug"] for found in results(lines)] == [describe(row)["slug"] for row in table(len(lines))]
    assert len(service.calls) == len(lines) == 20
    assert service.most <= 4
    assert service.times[-1] - service.times[0] > 2.0, "300 a minute: the last is 3.8 seconds behind the first"


async def test_a_table_with_bad_rows_stays_within_its_failure_policy(examples: Examples) -> None:
    service = TextService()
    async with service.serve() as url:
        examples.point("retry-and-failure-policy.yaml", TEXT_SERVICE, url)
        await examples.run("retry-and-failure-policy.yaml", "--workers", "1", "--limit", "1200")
    rows = table(1200)
    assert len(service.calls) == len(rows), "a row that is refused for good is not asked for again"
    found = pq.read_table(examples.path("careful.parquet")).to_pylist()
    assert [line["iata"] for line in found] == [row["iata"] for row in rows]
    for line, row in zip(found, rows, strict=True):
        try:
            wanted = describe(row)
        except Unusable:
            assert (line["state"], line["error_class"]) == ("Failed", "HTTP422"), line
        else:
            assert json.loads(line["result"]) == {"slug": wanted["slug"], "kind": wanted["kind"]}
    assert [line["seq"] for line in found if line["state"] == "Failed"] == [1137]


async def test_a_rehearsal_needs_no_service_and_no_secret(examples: Examples) -> None:
    assert "NAMES_TOKEN" not in examples.environ
    out = await examples.run("simulate.yaml")
    assert "(simulated: no call was sent)" in out
    written = examples.state("simulate.yaml") / "results.simulated.jsonl"
    lines = [json.loads(line) for line in written.read_text("utf-8").splitlines()]
    for line, row in zip(lines, table(500), strict=True):
        if line["state"] == SUCCEEDED:
            request = line["result"]["request"]
            assert request["url"] == "https://names.example/v1/names"
            assert request["body"] == {name: row[name] for name in ("name", "city", "state")}
    classes = Counter(line["error"]["class"] for line in lines if line["state"] != SUCCEEDED)
    assert set(classes) == {"HTTP422"}
    assert classes.total() == 3, "the seed says which rows fail"
    assert re.search(r"would cost +0\.994\b", out), "497 rows that succeed, at 0.002 each"


RUN_BY = {
    "comfyui.yaml": test_an_order_of_images_is_made_once,
    "dedupe.yaml": test_a_key_is_sent_once,
    "dify.yaml": test_questions_go_through_a_dify_workflow,
    "embeddings.yaml": test_texts_become_vectors_in_a_worker_of_their_own,
    "inline-rows.yaml": test_the_smallest_job_runs,
    "limits.yaml": test_a_group_goes_no_faster_than_it_says,
    "openai-batch.yaml": test_a_file_of_the_batch_api_runs_unchanged,
    "openai.yaml": test_tickets_are_triaged_by_a_model_server,
    "python.yaml": test_a_function_runs_for_each_row,
    "retry-and-failure-policy.yaml": test_a_table_with_bad_rows_stays_within_its_failure_policy,
    "simulate.yaml": test_a_rehearsal_needs_no_service_and_no_secret,
}


def test_every_example_is_run() -> None:
    assert set(RUN_BY) == {path.name for path in EXAMPLES.glob("*.yaml")}, "an example that no test runs"
    assert [name for name, test in RUN_BY.items() if f'.run("{name}"' not in inspect.getsource(test)] == []
