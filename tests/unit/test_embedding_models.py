"""What every model is held to: the double that tests use, and a real one where ROWMILL_EMBEDDING_MODEL names it."""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec
import pytest

from rowmill_worker.children.embedder import Embedder, Model, serve_model
from rowmill_worker.children.messages import Failure
from rowmill_worker.children.serve import Unfit
from rowmill_worker.executors.embeddings import LOADER

DOUBLE = "tests.support.model_double:load"
REAL = os.environ.get("ROWMILL_EMBEDDING_MODEL")
MODELS = [pytest.param((DOUBLE, "double-1000"), id="double")]
MODELS += [pytest.param((LOADER, REAL), id="real", marks=pytest.mark.filterwarnings("default"))] if REAL else []
TEXTS = [
    "a short text",
    "the quick brown fox jumps over the lazy dog while nobody looks at it",
    "",
    "größe, naïve, 中文, 🙂",
    " ".join(f"word{n}" for n in range(2_000)),
]


def settings_of(loader: str, model: str, **fields: Any) -> dict[str, Any]:
    return {
        "loader": loader,
        "model": model,
        "revision": None,
        "device": "CPU",
        "dtype": "Float32",
        "maxLength": None,
        "normalize": True,
        "onTooLong": "Truncate",
        "maxSize": 64,
        **fields,
    }


def vectors(embedder: Embedder, texts: list[str]) -> list[list[float]]:
    answers = list(embedder.run(texts))
    assert all(isinstance(answer, bytes) for answer in answers), answers
    return [msgspec.json.decode(answer, type=list[float]) for answer in answers if isinstance(answer, bytes)]


@pytest.fixture(scope="module", params=MODELS)
def which(request: pytest.FixtureRequest) -> tuple[str, str]:
    loader, model = request.param
    return loader, model


@pytest.fixture(scope="module")
def embedder(which: tuple[str, str]) -> Embedder:
    return serve_model(settings_of(*which))


def test_a_text_has_one_vector_whatever_stands_beside_it(embedder: Embedder) -> None:
    together = vectors(embedder, TEXTS)
    assert len(together) == len(TEXTS)
    assert len({len(vector) for vector in together}) == 1
    assert len(together[0]) == embedder.details["dimensions"]
    for text, vector in zip(TEXTS, together, strict=True):
        (alone,) = vectors(embedder, [text])
        assert alone == pytest.approx(vector, abs=1e-5)
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-3)


def test_numbers_are_written_no_longer_than_they_are_exact(embedder: Embedder) -> None:
    for answer in embedder.run(TEXTS):
        assert isinstance(answer, bytes)
        digits = [number.lstrip("-").lstrip("0.").split("e")[0] for number in answer.decode()[1:-1].split(",")]
        assert max(len(part.replace(".", "")) for part in digits) <= 9


def test_a_long_text_is_cut_or_refused(which: tuple[str, str]) -> None:
    cut = serve_model(settings_of(*which, maxLength=12))
    texts = ["one two three", "one two three " * 100]
    assert len(vectors(cut, texts)) == 2
    strict = serve_model(settings_of(*which, maxLength=12, onTooLong="Fail"))
    short, failure = strict.run(texts)
    assert isinstance(short, bytes)
    assert isinstance(failure, Failure)
    assert (failure.error_class, failure.retryable, failure.index) == ("TextTooLong", False, 0)
    assert "the model takes 12;" in failure.message
    ten, eleven = strict.run([" ".join("a" * 10), " ".join("a" * 11)])
    assert isinstance(ten, bytes), "12 tokens with those around it, in more than 12 bytes"
    assert isinstance(eleven, Failure)


def test_vectors_may_keep_their_length(which: tuple[str, str]) -> None:
    (vector,) = vectors(serve_model(settings_of(*which, normalize=False)), ["the quick brown fox"])
    (unit,) = vectors(serve_model(settings_of(*which)), ["the quick brown fox"])
    length = math.hypot(*vector)
    assert [number / length for number in vector] == pytest.approx(unit, abs=1e-5)


def test_a_model_or_device_that_is_missing_is_told(which: tuple[str, str]) -> None:
    loader, model = which
    with pytest.raises(Unfit, match="/no/such/folder cannot be loaded") as missing:
        serve_model(settings_of(loader, "/no/such/folder"))
    assert missing.value.field == "model"
    if loader == DOUBLE or embedder_has_no_gpu():
        with pytest.raises(Unfit, match="the worker sees no GPU") as device:
            serve_model(settings_of(loader, model, device="CUDA"))
        assert device.value.field == "device"


def embedder_has_no_gpu() -> bool:
    torch: Any = pytest.importorskip("torch")
    return not torch.cuda.is_available()


# What follows is about the embedder, and needs a model whose memory runs out when it is told to.


def double(name: str, **fields: Any) -> tuple[Embedder, Any]:
    embedder = serve_model(settings_of(DOUBLE, name, **fields))
    model: Model = embedder._model
    return embedder, model


def test_when_memory_runs_out_the_batch_is_halved_for_good() -> None:
    embedder, model = double("double-5")
    texts = [f"text number {n}" for n in range(64)]
    assert vectors(embedder, texts) == vectors(double("double-1000")[0], texts)
    assert model.parts == [64, 32, 16, 8, *[4] * 16]
    assert model.freed == 4
    vectors(embedder, texts[:8])
    assert model.parts[-2:] == [4, 4], "what fits is remembered"


def test_one_text_that_does_not_fit_fails_alone() -> None:
    embedder, _ = double("double-1000")
    answers = list(embedder.run(["a", "too big", "b"]))
    assert [isinstance(answer, bytes) for answer in answers] == [True, False, True]
    failure = answers[1]
    assert isinstance(failure, Failure)
    assert (failure.error_class, failure.retryable, failure.index) == ("OutOfMemory", True, 0)


def test_a_vector_that_is_no_number_fails_alone() -> None:
    embedder, _ = double("double-1000")
    good, bad = embedder.run(["a", "nan"])
    assert isinstance(good, bytes)
    assert isinstance(bad, Failure)
    assert (bad.error_class, bad.retryable) == ("InvalidVector", False)


def test_long_texts_go_together_and_first() -> None:
    embedder, model = double("double-1000")
    seen: list[list[str]] = []
    encode = model.encode
    model.encode = lambda texts: seen.append(list(texts)) or encode(texts)
    embedder._part = 2
    vectors(embedder, ["aaa", "a", "aaaaa", "aa", "aaaa"])
    assert seen == [["aaaa", "aaaaa"], ["aa", "aaa"], ["a"]]


def test_whatever_else_a_model_raises_is_told() -> None:
    embedder, _ = double("double-1000")
    (failure,) = embedder.run(["a", "boom"])
    assert isinstance(failure, Failure)
    assert (failure.index, failure.error_class) == (-1, "ModelError")
    assert failure.message == "ValueError: this model cannot take that"
