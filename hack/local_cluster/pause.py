"""The image of the process that holds a pod's namespaces open, compiled here because none may be downloaded."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from . import archives
from .components import PAUSE_IMAGE
from .shell import run

SOURCE = r"""
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, NULL, WNOHANG) > 0) {} }

int main(void) {
    struct sigaction end = {.sa_handler = leave};
    struct sigaction child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART};
    if (sigaction(SIGINT, &end, NULL) || sigaction(SIGTERM, &end, NULL) || sigaction(SIGCHLD, &child, NULL))
        return 1;
    for (;;) pause();
}
"""


def pause_archive(folder: Path) -> Path:
    """The archive of PAUSE_IMAGE in `folder`, made if it is not there."""
    archive = folder / (PAUSE_IMAGE.rpartition("/")[2].replace(":", "-") + ".tar")
    if not archive.exists():
        with tempfile.TemporaryDirectory() as scratch:
            source, program, layer = (Path(scratch) / name for name in ("pause.c", "pause", "layer.tar"))
            source.write_text(SOURCE)
            run(["gcc", "-Os", "-static", "-s", "-Wall", "-Werror", "-o", program, source])
            with tarfile.open(layer, "w") as out:
                out.add(program, arcname="pause")
            archives.write(
                archive, layer=layer, reference=PAUSE_IMAGE, config={"Entrypoint": ["/pause"], "User": "65535:65535"}
            )
    return archive
