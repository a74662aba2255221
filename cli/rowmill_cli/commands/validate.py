"""`rowmill validate`: is the manifest right?"""

from __future__ import annotations

from pathlib import Path

import click

from rowmill.errors import InvalidInput


@click.command(short_help="Check manifests, and start nothing.")
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate(files: tuple[Path, ...]) -> int:
    """Check manifests, and start nothing.

    Prints one line an error: `FILE: spec.executor.http.url: what is wrong, what is right`. Exits with 0 when all are
    right, else with 2.
    """
    from rowmill.spec import check_available, load_manifest_file

    lines: list[str] = []
    for file in files:
        try:
            check_available(load_manifest_file(file), where=str(file))
        except InvalidInput as error:
            lines += error.lines()
        else:
            click.echo(f"{file}: ok")
    for line in lines:
        click.echo(line, err=True)
    return 2 if lines else 0
