"""What the operator is started with, and what it says of each variable that it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from rowmill.errors import InvalidInput
from rowmill_operator.kube.settings import OperatorSettings

NEEDED = {
    "ROWMILL_REDIS_URL": "redis://:geheim@redis:6379/0",
    "ROWMILL_POSTGRES_DSN": "postgresql://u:geheim@postgres/db",
    "ROWMILL_WORKER_IMAGE": "example.org/worker:1",
}


def problems(**environ: str) -> dict[str, str]:
    """What is wrong, by variable."""
    with pytest.raises(InvalidInput) as wrong:
        OperatorSettings.from_environment({**NEEDED, **environ})
    return {problem.path: problem.message for problem in wrong.value.problems}


def test_the_least_that_is_needed() -> None:
    settings = OperatorSettings.from_environment(NEEDED)
    assert settings.worker_redis_url == settings.redis_url == NEEDED["ROWMILL_REDIS_URL"]
    assert settings.worker_postgres_dsn == settings.postgres_dsn == NEEDED["ROWMILL_POSTGRES_DSN"]
    assert settings.namespaces == ()
    assert settings.installation == "rowmill"
    assert settings.ambient_credentials is False
    assert settings.shared_keys.shares == (), "nobody shares keys who was not permitted to"
    assert "geheim" not in repr(settings)


def test_everything_that_can_be_said() -> None:
    settings = OperatorSettings.from_environment(
        {
            **NEEDED,
            "ROWMILL_WORKER_REDIS_URL": "redis://inside:6379/0",
            "ROWMILL_WORKER_POSTGRES_DSN": "postgresql://inside/db",
            "ROWMILL_INSTALLATION": "second",
            "ROWMILL_NAMESPACES": " a, b,,",
            "ROWMILL_WORKER_IMAGE_PULL_POLICY": "Always",
            "ROWMILL_WORKER_IMAGE_PULL_SECRETS": "one,two",
            "ROWMILL_WORKER_HTTP_PORT": "9999",
            "POD_NAME": "operator-7",
            "POD_NAMESPACE": "system",
            "ROWMILL_LEASE": "lease",
            "ROWMILL_HTTP_PORT": "0",
            "ROWMILL_LOG_LEVEL": "debug",
            "ROWMILL_THREADS": "2",
            "ROWMILL_ALLOW_ADDRESSES": "10.0.0.0/8",
            "ROWMILL_AMBIENT_CREDENTIALS": "true",
            "ROWMILL_CACHE_DIR": "/tmp/cache",
            "ROWMILL_CACHE_BYTES": "2097152",
            "ROWMILL_DEDUPE_SHARED": '[{"group": "orders", "namespaces": ["shop"]}]',
        }
    )
    assert settings.worker_redis_url == "redis://inside:6379/0"
    assert settings.namespaces == ("a", "b")
    assert settings.worker_image_pull_secrets == ("one", "two")
    assert (settings.worker_image_pull_policy, settings.worker_http_port, settings.http_port) == ("Always", 9999, 0)
    assert (settings.pod_name, settings.pod_namespace, settings.lease) == ("operator-7", "system", "lease")
    assert (settings.threads, settings.cache, settings.cache_bytes) == (2, Path("/tmp/cache"), 2**21)
    assert settings.ambient_credentials is True
    assert settings.shared_keys.permits(group="orders", namespace="shop")


@pytest.mark.parametrize("name", sorted(NEEDED))
@pytest.mark.parametrize("value", ["", "   "])
def test_what_is_needed_and_missing_is_named_with_what_to_do(name: str, value: str) -> None:
    found = problems(**{name: value})
    assert list(found) == [name]
    assert "is not set; set it to" in found[name]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ROWMILL_WORKER_IMAGE_PULL_POLICY", "Sometimes", "must be one of IfNotPresent, Always, Never"),
        ("ROWMILL_LOG_LEVEL", "loud", "must be one of info, debug, warning, error"),
        ("ROWMILL_AMBIENT_CREDENTIALS", "yes", "must be one of false, true"),
        ("ROWMILL_HTTP_PORT", "65536", "from 0 to 65535"),
        ("ROWMILL_HTTP_PORT", "-1", "whole number"),
        ("ROWMILL_WORKER_HTTP_PORT", "0", "from 1 to 65535"),
        ("ROWMILL_THREADS", "0", "from 1 to 256"),
        ("ROWMILL_THREADS", "٣", "whole number"),
        ("ROWMILL_CACHE_BYTES", "1.5", "whole number"),
        ("ROWMILL_CACHE_BYTES", "5", "from 1048576"),
        ("ROWMILL_ALLOW_ADDRESSES", "10.0.0.0/8,nonsense", "nonsense"),
        ("ROWMILL_DEDUPE_SHARED", "orders", "no list such as"),
        ("ROWMILL_DEDUPE_SHARED", '[{"group": "g", "namespace": "a"}]', "unknown field `namespace`"),
        ("ROWMILL_DEDUPE_SHARED", '[{"group": "g", "namespaces": []}]', "[0].namespaces is empty"),
        ("ROWMILL_DEDUPE_SHARED", '[{"group": "a b", "namespaces": ["*"]}]', "[0].group is 'a b'"),
        ("ROWMILL_DEDUPE_SHARED", '[{"group": "g", "namespaces": ["a*"]}]', "'a*', which is no namespace's name"),
    ],
)
def test_each_variable_that_cannot_be_used_is_named(name: str, value: str, says: str) -> None:
    found = problems(**{name: value})
    assert list(found) == [name]
    assert says in found[name]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    found = problems(ROWMILL_REDIS_URL="", ROWMILL_THREADS="many", ROWMILL_LOG_LEVEL="loud")
    assert set(found) == {"ROWMILL_REDIS_URL", "ROWMILL_THREADS", "ROWMILL_LOG_LEVEL"}
