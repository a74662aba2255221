"""Every example is what the program accepts, and the demo's table and manifest belong together."""

from __future__ import annotations

import csv
import hashlib
import socket
from pathlib import Path

import pytest
import yaml

from examples.demo.run import MANIFEST, manifest_for, usable_port
from examples.textservice.service import Unusable, describe
from rowmill.spec import check_available, load_manifest, load_manifest_file

EXAMPLES = Path(__file__).parents[2] / "examples"
TABLE = EXAMPLES / "data" / "us-airports.csv"
MANIFESTS = sorted(EXAMPLES.rglob("*.yaml"))


def test_there_are_examples() -> None:
    assert {"job.yaml", "inline-rows.yaml", "dedupe.yaml", "simulate.yaml"} <= {path.name for path in MANIFESTS}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_valid_and_available(path: Path) -> None:
    job = load_manifest_file(path)
    check_available(job, where=str(path))
    source = job.spec.source
    if source.uri is not None:
        assert (path.parent / source.uri).is_file()


def test_every_manifest_has_a_name_of_its_own() -> None:
    names = [load_manifest_file(path).metadata.name for path in MANIFESTS]
    assert len(set(names)) == len(names)


def test_the_table_is_the_one_whose_licence_stands_beside_it() -> None:
    digest = hashlib.sha256(TABLE.read_bytes()).hexdigest()
    assert f"`{digest}`" in (TABLE.parent / "LICENSE.md").read_text("utf-8")


def test_the_service_answers_all_of_the_table_but_the_places_without_a_city() -> None:
    refused, slugs = [], set()
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        try:
            slugs.add(describe(row)["slug"])
        except Unusable as unusable:
            refused.append((row["city"], unusable.field))
    assert len(rows) >= 3000
    assert refused == [("NA", "city")] * 12
    assert len(slugs) > 0.99 * (len(rows) - len(refused))


def test_the_demo_changes_address_run_and_nothing_else() -> None:
    given = yaml.safe_load(MANIFEST.read_text("utf-8"))
    made = manifest_for(given, address="http://127.0.0.1:4711", run_id="20260101-000000")
    job = load_manifest(yaml.safe_dump(made), where="demo")
    assert job.spec.executor.http is not None
    assert job.spec.executor.http.url == "http://127.0.0.1:4711/v1/names"
    assert job.spec.run_id == "20260101-000000"
    assert job.spec.source.uri == str(TABLE.resolve())
    made["spec"]["executor"]["http"]["url"] = given["spec"]["executor"]["http"]["url"]
    made["spec"]["source"]["uri"] = given["spec"]["source"]["uri"]
    del made["spec"]["runId"]
    assert made == given


def test_a_port_that_is_taken_is_not_insisted_on() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert usable_port(port) == 0
    assert usable_port(port) == port
