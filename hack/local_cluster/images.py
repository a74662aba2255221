"""Rowmill's images: a base made by debootstrap, the project's own Dockerfile on top, and archives for `load`.

Where Docker answers, Docker builds. Elsewhere buildah does, without a daemon: the base comes from this machine's own
Debian mirror, and pip's configuration and the machine's certificates are mounted into the build, so that neither
a mirror's address nor a certificate ever lands in a layer.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import archives, packages
from .errors import ClusterError
from .settings import Paths, is_root
from .shell import run, say, step, succeeds
from .state import locked

SUITE = "bookworm"
BASE = f"localhost/rowmill-base:{SUITE}"
BASE_RECIPE = "r1"  # counted up whenever what the base holds changes
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
UNUSED = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
)
NAMELESS_KEPT = 100
TARGETS = ("operator", "worker", "demo")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PLACES = ("find-links", "index-url", "extra-index-url")
CONFIGURATIONS = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


def reference(target: str, tag: str) -> str:
    """The name of the image of one target. `localhost`: no node ever asks a registry for it."""
    return f"localhost/rowmill-{target}:{tag}"


def archive_of(paths: Paths, target: str, tag: str) -> Path:
    """Where the archive of a target lies."""
    return paths.images / f"rowmill-{target}-{tag}.tar"


def base(paths: Paths) -> Path:
    """The archive of the base image, made once: minimal Debian with Python."""
    archive = paths.images / f"rowmill-base-{SUITE}-{BASE_RECIPE}.tar"
    with locked(f"images:{paths.images}"):
        if not archive.exists():
            _need_root()
            packages.install(packages.FOR_IMAGES)
            with step("making the base image (once; about a minute)"):
                _bootstrap(archive)
    return archive


def _need_root() -> None:
    if not is_root():
        raise ClusterError("only root can build images without Docker", "use sudo, or start Docker")


def _bootstrap(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        tree, layer = Path(scratch) / "tree", Path(scratch) / "layer.tar"
        run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", SUITE, tree, *_mirror()],
            log=Path(scratch) / "debootstrap.log",
            fix="see that this machine's package sources can be reached",
        )
        for dropped in UNUSED:
            shutil.rmtree(tree / dropped, ignore_errors=True)
            (tree / dropped).mkdir(parents=True)
        # debootstrap leaves the build machine's own names behind.
        for own in ("etc/hostname", "etc/resolv.conf", "etc/apt/sources.list"):
            (tree / own).unlink(missing_ok=True)
        (tree / CONFIGURATIONS[1].lstrip("/")).touch()
        with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as out:
            out.add(tree, arcname=".", filter=_without_devices)
        archives.write(
            archive,
            layer=layer,
            reference=BASE,
            config={
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
                "Cmd": ["python3"],
            },
        )


def _without_devices(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.isdev() else entry


def _mirror() -> list[str]:
    """The site from which this machine's apt gets SUITE; empty for debootstrap's default."""
    listed = run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Codename: {SUITE}"])
    return listed.split()[:1]


def pip_settings(environment: Mapping[str, str], read: Iterable[str]) -> dict[str, str]:
    """pip's settings as this machine has them: the texts of its configuration files, later over earlier, then PIP_*.

    Sections of single commands are left out, and settings that mean nothing in a build.
    """
    settings: dict[str, str] = {}
    for text in read:
        parsed = configparser.RawConfigParser()
        try:
            parsed.read_string(text)
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parsed.has_section(section):
                settings.update(parsed.items(section))
    for name, value in environment.items():
        if name.startswith("PIP_"):
            settings[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    for useless in (
        "cert",
        "client-cert",
        "require-virtualenv",
        "user",
        "target",
        "prefix",
        "cache-dir",
        "config-file",
    ):
        settings.pop(useless, None)
    return settings


def lend(settings: Mapping[str, str], scratch: Path, certificates: Path = CERTIFICATES) -> list[str]:
    """buildah's flags that lend a build pip's configuration, the folders that it names and the certificates.

    A mount leaves an empty file or folder where its target did not exist. So nothing is mounted at a path of its own:
    the base has an empty /etc/pip.conf, and folders of this machine (find-links, file:// indexes) appear below /mnt,
    which every Debian has; the configuration is rewritten accordingly. Writes that and the mount points to `scratch`.
    """
    inside = scratch / "mnt"
    inside.mkdir()
    lent, flags = dict(settings), []
    for number, folder in enumerate(local_folders(settings)):
        (inside / str(number)).mkdir()
        flags.append(f"--volume={folder}:/mnt/{number}:ro")
        for name in PLACES:
            if name in lent:
                words = (
                    re.sub(f"^(file://)?{re.escape(folder)}(?=/|$)", rf"\g<1>/mnt/{number}", word)
                    for word in lent[name].split()
                )
                lent[name] = "\n  ".join(words)
    if certificates.exists():
        lent["cert"] = str(CERTIFICATES)
        flags.append(f"--volume={certificates}:{CERTIFICATES}:ro")
    configuration = scratch / "pip.conf"
    configuration.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in lent.items())]) + "\n")
    return [f"--volume={configuration}:{CONFIGURATIONS[1]}:ro", f"--volume={inside}:/mnt:ro", *flags]


def local_folders(settings: Mapping[str, str]) -> list[str]:
    """The folders of this machine that `settings` send pip to, cut to two levels (indexes link to their siblings)."""
    words = " ".join(settings.get(name, "") for name in PLACES).split()
    paths_named = (Path(word.removeprefix("file://")) for word in words)
    tops = {str(Path(*path.parts[:3])) for path in paths_named if path.is_absolute() and path.exists()}
    return sorted(tops)


def build(root: Path, paths: Paths, *, tag: str, environment: Mapping[str, str], targets: Sequence[str]) -> list[Path]:
    """Build `targets` of the Dockerfile in `root`; returns their archives. Raises ClusterError with the build's end."""
    if not (root / "Dockerfile").exists():
        raise ClusterError(f"{root} has no Dockerfile", "run it in a checkout of Rowmill")
    if shutil.which("docker") and succeeds(["docker", "info"], timeout=10.0):
        return [_build_with_docker(root, paths, target, tag) for target in targets]
    _need_root()
    archive = base(paths)
    packages.install(packages.FOR_IMAGES)
    with locked(f"images:{paths.images}"), tempfile.TemporaryDirectory() as scratch:
        buildah = _buildah(paths)
        if not succeeds([*buildah, "inspect", "--type", "image", BASE]):
            with step("importing the base image"):
                run([*buildah, "pull", "--quiet", f"docker-archive:{archive}"])
        files = [Path(name).expanduser() for name in CONFIGURATIONS]
        settings = pip_settings(environment, [file.read_text() for file in files if file.is_file()])
        lent = lend(settings, Path(scratch))
        built = []
        for target in targets:
            name, out = reference(target, tag), archive_of(paths, target, tag)
            log = paths.images / f"build-{target}.log"
            log.unlink(missing_ok=True)
            with step(f"building {name}"):
                run(
                    [
                        *(*buildah, "bud", "--isolation=chroot", "--layers", "--pull-never"),
                        *(*lent, f"--build-arg=BASE={BASE}", f"--target={target}", f"--tag={name}", str(root)),
                    ],
                    log=log,
                )
                _export(buildah, name, out)
            built.append(out)
        # Nameless images are what makes the next build quick. Those that later builds replaced pile up among them.
        if len(run([*buildah, "images", "--quiet", "--filter", "dangling=true"]).split()) > NAMELESS_KEPT:
            with step("removing what old builds left in the cache"):
                run([*buildah, "rmi", "--prune", "--force"])
    return built


def _export(buildah: Sequence[str], name: str, out: Path) -> None:
    """Write the image's archive, unless the one that is there is of the same build."""
    identity = run([*buildah, "images", "--quiet", "--no-trunc", name]).strip()
    written = out.with_suffix(".id")
    if out.exists() and written.exists() and written.read_text() == identity:
        return
    written.unlink(missing_ok=True)
    fresh = out.with_name(f".{out.name}.new")
    fresh.unlink(missing_ok=True)
    run([*buildah, "push", "--quiet", name, f"docker-archive:{fresh}:{name}"])
    os.replace(fresh, out)
    written.write_text(identity)


def _buildah(paths: Paths) -> list[str]:
    """buildah with a storage of its own in the cache. Layers are stacked where the file system can, else copied."""
    from .containers import snapshotter_for

    home = paths.cache / f"buildah-{BASE_RECIPE}"
    home.mkdir(parents=True, exist_ok=True)
    driver = "overlay" if snapshotter_for(home) == "overlayfs" else "vfs"
    return ["buildah", "--root", str(home / "storage"), "--runroot", str(home / "run"), "--storage-driver", driver]


def _build_with_docker(root: Path, paths: Paths, target: str, tag: str) -> Path:
    name, out = reference(target, tag), archive_of(paths, target, tag)
    log = paths.images / f"build-{target}.log"
    with step(f"building {name}"):
        run(["docker", "build", "--target", target, "--tag", name, root], log=log)
        fresh = out.with_name(f".{out.name}.new")
        run(["docker", "save", "--output", fresh, name])
        os.replace(fresh, out)
    return out


def report(files: Iterable[Path]) -> None:
    """Say where the archives are and how large."""
    for file in files:
        say(f"{', '.join(archives.references(file))}: {file} ({file.stat().st_size / 1e6:.0f} MB)")
