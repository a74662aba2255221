"""Files that ComfyUI makes, in an object store whose credentials come as a Secret's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput
from rowmill_worker.executors.comfyui_files import MARKER
from rowmill_worker.executors.protocol import RowError
from tests.support.comfyui_server import ComfyUIServer, png
from tests.support.http_rows import attempt
from tests.support.s3 import BUCKET, s3_client, s3_server
from tests.unit.test_executor_comfyui import executor_of

STORE = {"uri": f"s3://{BUCKET}/images/", "secretName": "images"}


@pytest.fixture
def keys() -> Iterator[dict[str, str]]:
    with s3_server() as keys:
        yield keys


@pytest.fixture
def secrets(tmp_path: Path, keys: dict[str, str]) -> dict[str, str]:
    """The worker's environment: the folder where a pod has its Secrets."""
    folder = tmp_path / "secrets" / "images"
    folder.mkdir(parents=True)
    for name, value in keys.items():
        (folder / name).write_text(value + "\n")
    (folder / "README").write_text("no credential")
    return {"ROWMILL_SECRETS_DIR": str(folder.parent)}


async def test_files_go_into_the_bucket_whole_and_once(keys: dict[str, str], secrets: dict[str, str]) -> None:
    s3 = s3_client(keys)
    server = ComfyUIServer()

    def names() -> list[str]:
        return [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    async with server as url:
        async with executor_of(url, store=STORE, environ=secrets, result="files[0].uri") as executor:
            assert names() == [f"images/triage/1/{MARKER}"]
            found = await executor.execute(attempt(3, text="a", timeout=60))
            assert await executor.execute(attempt(3, text="a", number=2, timeout=60)) == found
            assert found == f"s3://{BUCKET}/images/triage/1/3-0-9.png"
            assert names() == ["images/triage/1/3-0-9.png", f"images/triage/1/{MARKER}"]
            body: Any = s3.get_object(Bucket=BUCKET, Key=names()[0])["Body"].read()
            assert body == png(json.dumps([None, "a", None, None]))
            for name in names():
                s3.delete_object(Bucket=BUCKET, Key=name)
            s3.delete_bucket(Bucket=BUCKET)
            with pytest.raises(RowError) as caught:
                await executor.execute(attempt(4, text="a", timeout=60))
            assert (caught.value.error_class, caught.value.retryable) == ("StoreRefused", False)
            assert "takes it from there" in caught.value.message
        with pytest.raises(InvalidInput, match=r"spec\.executor\.comfyui\.store"):
            async with executor_of(url, store=STORE, environ=secrets):
                pass
    assert len(server.asked) == 2
    for environ, told in (
        ({}, "set ROWMILL_SECRETS_DIR to a folder that holds images/KEY"),
        ({"ROWMILL_SECRETS_DIR": "/nowhere"}, "has none of the keys that a store takes; look into /nowhere/images"),
    ):
        with pytest.raises(InvalidInput, match=told):
            async with executor_of("http://127.0.0.1:9", store=STORE, environ=environ):
                pass
