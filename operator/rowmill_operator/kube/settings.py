"""How the operator is started: from its environment, checked as a whole before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rowmill.errors import InvalidInput, Problem
from rowmill.storage import AddressPolicy
from rowmill_operator.kube.shared_keys import SharedKeys

WHERE = "the operator's environment"


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What the chart passes to the operator.

    `installation` is a part of every run's identity: keep it over re-installs. `namespaces` empty means all.
    `worker_redis_url` and `worker_postgres_dsn` are what workers are given. `threads` bounds those that read sources,
    over all jobs, `cache_bytes` what they have fetched. `policy` is what sources and outputs of tenants may reach,
    `shared_keys` which namespaces may share dedupe keys.
    """

    redis_url: str = field(repr=False)
    postgres_dsn: str = field(repr=False)
    worker_redis_url: str = field(repr=False)
    worker_postgres_dsn: str = field(repr=False)
    worker_image: str
    installation: str = "rowmill"
    namespaces: tuple[str, ...] = ()
    worker_image_pull_policy: str = "IfNotPresent"
    worker_image_pull_secrets: tuple[str, ...] = ()
    worker_http_port: int = 8081
    pod_name: str = "rowmill-operator"
    pod_namespace: str = "default"
    lease: str = "rowmill-operator"
    http_port: int = 8080
    log_level: str = "info"
    threads: int = 4
    policy: AddressPolicy = field(default_factory=AddressPolicy.tenants)
    ambient_credentials: bool = False
    cache: Path = Path("/var/cache/rowmill")
    cache_bytes: int = 8 * 2**30
    shared_keys: SharedKeys = field(default_factory=SharedKeys)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> OperatorSettings:
        """Read and check. Raises InvalidInput with one problem a variable."""
        reader = _Reader(environ)
        redis_url = reader.needed("ROWMILL_REDIS_URL", "set it to the Redis, as redis://host:6379/0")
        postgres_dsn = reader.needed("ROWMILL_POSTGRES_DSN", "set it to the Postgres, as postgresql://user@host/db")
        settings = cls(
            redis_url=redis_url,
            postgres_dsn=postgres_dsn,
            worker_redis_url=reader.text("ROWMILL_WORKER_REDIS_URL", redis_url),
            worker_postgres_dsn=reader.text("ROWMILL_WORKER_POSTGRES_DSN", postgres_dsn),
            worker_image=reader.needed("ROWMILL_WORKER_IMAGE", "set it to the image that workers run"),
            installation=reader.text("ROWMILL_INSTALLATION", "rowmill"),
            namespaces=reader.listed("ROWMILL_NAMESPACES"),
            worker_image_pull_policy=reader.one_of(
                "ROWMILL_WORKER_IMAGE_PULL_POLICY", ("IfNotPresent", "Always", "Never")
            ),
            worker_image_pull_secrets=reader.listed("ROWMILL_WORKER_IMAGE_PULL_SECRETS"),
            worker_http_port=reader.number("ROWMILL_WORKER_HTTP_PORT", 8081, 1, 65_535),
            pod_name=reader.text("POD_NAME", "rowmill-operator"),
            pod_namespace=reader.text("POD_NAMESPACE", "default"),
            lease=reader.text("ROWMILL_LEASE", "rowmill-operator"),
            http_port=reader.number("ROWMILL_HTTP_PORT", 8080, 0, 65_535),
            log_level=reader.one_of("ROWMILL_LOG_LEVEL", ("info", "debug", "warning", "error")),
            threads=reader.number("ROWMILL_THREADS", 4, 1, 256),
            policy=reader.policy("ROWMILL_ALLOW_ADDRESSES"),
            ambient_credentials=reader.one_of("ROWMILL_AMBIENT_CREDENTIALS", ("false", "true")) == "true",
            cache_bytes=reader.number("ROWMILL_CACHE_BYTES", 8 * 2**30, 2**20, 2**50),
            cache=Path(reader.text("ROWMILL_CACHE_DIR", "/var/cache/rowmill")),
            shared_keys=reader.shared_keys("ROWMILL_DEDUPE_SHARED"),
        )
        if reader.problems:
            raise InvalidInput(WHERE, reader.problems)
        return settings


class _Reader:
    """Reads variables and gathers what is wrong with them. An empty variable counts as absent."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[Problem] = []

    def text(self, name: str, default: str) -> str:
        return self._environ.get(name, "").strip() or default

    def needed(self, name: str, advice: str) -> str:
        found = self.text(name, "")
        if not found:
            self.problems.append(Problem(name, f"is not set; {advice}"))
        return found

    def listed(self, name: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.text(name, "").split(",") if part.strip())

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        """The first of `allowed` is the default."""
        found = self.text(name, allowed[0])
        if found not in allowed:
            self.problems.append(Problem(name, f"is {found!r}; it must be one of {', '.join(allowed)}"))
        return found

    def number(self, name: str, default: int, low: int, high: int) -> int:
        found = self.text(name, str(default))
        if found.isascii() and found.isdigit() and low <= int(found) <= high:
            return int(found)
        self.problems.append(Problem(name, f"is {found!r}; it must be a whole number from {low} to {high}"))
        return default

    def policy(self, name: str) -> AddressPolicy:
        try:
            return AddressPolicy.tenants(self.listed(name))
        except InvalidInput as error:
            self.problems += [Problem(name, problem.message) for problem in error.problems]
            return AddressPolicy.tenants()

    def shared_keys(self, name: str) -> SharedKeys:
        try:
            return SharedKeys.parse(self.text(name, ""), where=WHERE)
        except InvalidInput as error:
            self.problems += [Problem(name, problem.message) for problem in error.problems]
            return SharedKeys()
