"""Secrets are found where the manifest says, refused clearly where they are not, and taken out of every text."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill_worker.executors.secrets import MAX_SECRET_BYTES, Redactor, SecretReader

PATH = "spec.executor.http.headers[0].valueFrom"


def refused(caught: pytest.ExceptionInfo[InvalidInput]) -> str:
    (line,) = caught.value.lines()
    assert line.startswith(f"job.yaml: {PATH}: ")
    return line


def test_each_kind_is_found(tmp_path: Path) -> None:
    (tmp_path / "triage").mkdir()
    (tmp_path / "triage" / "token").write_bytes(b"from-secret\r\n")
    (tmp_path / "near").write_text("from-file\n\t x")
    (tmp_path / "one-line").write_text("from-file\n")
    reader = SecretReader(environ={"TOKEN": "from-env", "ROWMILL_SECRETS_DIR": str(tmp_path)}, base=tmp_path)
    assert reader.from_env("TOKEN", path=PATH) == "from-env"
    assert reader.from_secret("triage", "token", path=PATH) == "from-secret"
    assert reader.from_file("one-line", path=PATH) == "from-file"
    assert reader.from_file(str(tmp_path / "one-line"), path=PATH) == "from-file"
    assert "from-" not in repr(reader) + repr(reader.redactor())
    assert reader.redactor().redact("a from-env b from-secret c from-file") == "a [redacted] b [redacted] c [redacted]"


def test_what_is_missing_says_what_to_set(tmp_path: Path) -> None:
    reader = SecretReader(environ={}, where="job.yaml", base=tmp_path)
    with pytest.raises(InvalidInput) as caught:
        reader.from_env("TOKEN", path=PATH)
    assert "TOKEN is not set; set it where the worker runs" in refused(caught)
    with pytest.raises(InvalidInput) as caught:
        reader.from_file("absent", path=PATH)
    assert f"{tmp_path}/absent cannot be read (No such file or directory)" in refused(caught)
    with pytest.raises(InvalidInput) as caught:
        reader.from_secret("triage", "token", path=PATH)
    assert "set ROWMILL_SECRETS_DIR to a folder that holds the file triage/token" in refused(caught)
    reader = SecretReader(environ={"ROWMILL_SECRETS_DIR": str(tmp_path)}, where="job.yaml")
    with pytest.raises(InvalidInput) as caught:
        reader.from_secret("triage", "token", path=PATH)
    assert f"{tmp_path}/triage/token cannot be read" in refused(caught)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"a\nb\n", "line break"),
        (b"a\0b", "control character"),
        (b"\xff", "not UTF-8"),
        (b"x" * (MAX_SECRET_BYTES + 1), "larger than 65,536 bytes"),
    ],
)
def test_what_no_header_can_carry_is_refused_without_telling_it(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "file").write_bytes(content)
    reader = SecretReader(environ={}, where="job.yaml", base=tmp_path)
    with pytest.raises(InvalidInput) as caught:
        reader.from_file("file", path=PATH)
    assert says in refused(caught)
    assert len(refused(caught)) < 300


@pytest.mark.parametrize(("name", "key"), [("..", "x"), ("a/b", "x"), ("a", "../../etc/passwd"), ("a", ""), (".", "x")])
def test_no_reference_leaves_the_folder(tmp_path: Path, name: str, key: str) -> None:
    reader = SecretReader(environ={"ROWMILL_SECRETS_DIR": str(tmp_path)}, where="job.yaml")
    with pytest.raises(InvalidInput) as caught:
        reader.from_secret(name, key, path=PATH)
    assert "cannot name a secret" in refused(caught)


@given(
    secrets=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=8, max_size=40), max_size=4),
    around=st.text(alphabet="xy ", max_size=20),
)
def test_no_form_of_a_secret_is_left(secrets: list[str], around: str) -> None:
    redactor = Redactor(secrets)
    told = around.join([*secrets, *(json.dumps(s) for s in secrets), *(quote(s, safe="") for s in secrets)])
    cleaned = redactor.redact(told)
    for secret in secrets:
        if secret.strip(" xy[]redact"):
            assert secret not in cleaned


def test_a_token_alone_is_known_from_its_header() -> None:
    redactor = Redactor(["Bearer abcdefgh12345678", "abc"])
    assert redactor.redact("token abcdefgh12345678 is bad; abc") == "token [redacted] is bad; abc"
    assert redactor.redact("Bearer abcdefgh12345678") == "[redacted]"
    assert redactor.longest >= len("Bearer abcdefgh12345678")


def test_without_secrets_nothing_changes() -> None:
    assert Redactor([]).redact("as it is") == "as it is"
