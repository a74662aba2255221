"""Making an image archive (the format of `docker save`) from a root file system, with nothing but tarfile."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(archive: Path, *, layer: Path, reference: str, config: dict[str, Any]) -> None:
    """Write `archive` with one uncompressed layer (a tar file), atomically.

    `reference` is name:tag; `config` becomes the image's config (Env, Cmd, Entrypoint, ...).
    """
    digest = _sha256(layer)
    machine = os.uname().machine
    image = json.dumps(
        {
            "architecture": ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "rowmill hack/images"}],
        }
    ).encode()
    name = f"{hashlib.sha256(image).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": [f"{digest}/layer.tar"]}]).encode()
    fresh = archive.with_name(f".{archive.name}.new")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: fresh.unlink(missing_ok=True))
        with tarfile.open(fresh, "w") as out:
            out.add(layer, arcname=f"{digest}/layer.tar")
            for member, body in ((name, image), ("manifest.json", manifest)):
                entry = tarfile.TarInfo(member)
                entry.size = len(body)
                out.addfile(entry, io.BytesIO(body))
        os.replace(fresh, archive)


def references(archive: Path) -> list[str]:
    """The names that a docker archive gives its images. Raises ValueError when it is not one."""
    try:
        with tarfile.open(archive) as source:
            member = source.extractfile("manifest.json")
            if member is None:
                raise ValueError("its manifest.json is not a file")
            return [name for image in json.load(member) for name in image.get("RepoTags") or []]
    except (tarfile.TarError, KeyError, TypeError) as error:
        raise ValueError(str(error).splitlines()[0].rstrip(":")) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
