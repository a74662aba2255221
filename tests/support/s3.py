"""An object store that speaks S3, in a process of its own: what moto keeps is shared by all servers of a process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

BUCKET = "bucket"
START_SECONDS = 60.0
SIGN = "Running on http"


@contextmanager
def moto_process(host: str) -> Iterator[dict[str, str]]:
    """A server on a free port of `host`; its address and keys, named as in a Secret."""
    with tempfile.TemporaryDirectory(prefix="rowmill-s3-") as folder:
        said = Path(folder) / "log"
        with said.open("wb") as log:
            command = [sys.executable, "-u", "-m", "moto.server", "-H", host, "-p", "0"]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield {
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": _address(process, said),
            }
        finally:
            process.terminate()
            process.wait(60)


def s3_client(keys: dict[str, str]) -> Any:
    """boto3's client with these keys."""
    return boto3.client(
        "s3",
        endpoint_url=keys["AWS_ENDPOINT_URL"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name=keys["AWS_REGION"],
    )


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A server on this machine alone; the bucket `bucket` is there, and empty."""
    with moto_process("127.0.0.1") as keys:
        s3_client(keys).create_bucket(Bucket=BUCKET)
        yield keys


def _address(process: subprocess.Popen[bytes], said: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while True:
        for line in said.read_text().splitlines():
            if SIGN in line:
                return line.split("Running on ")[1].split()[0]
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"moto does not run: {said.read_text()}")
        time.sleep(0.05)
