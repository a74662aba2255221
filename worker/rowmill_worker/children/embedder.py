"""An embedding model in its child process. Items are texts, results their vectors as JSON lists of numbers.

Settings: those of `spec.executor.embeddings` by their own names, `maxSize` of its batching, and `loader`, which names
what loads the model (`module:function`; see `Model`).

The texts of a call are sorted by length and go to the model in parts, cut so that little is padded and not too many are
needed (`parts`). When memory runs out, the size that a part may have is halved, for good, and what is left is cut anew:
nothing that was computed is lost. Numbers are written with nine digits, which is exact for what a model computes in.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec

from rowmill_worker.children.messages import MAX_MESSAGE_CHARS, Failure
from rowmill_worker.children.parts import cut
from rowmill_worker.children.serve import Answer

CUDA_LOST: Final = 70
"""Exit code of a process whose GPU no longer answers as it should: a new process gets it back."""

_TOKENS_OF_THE_MODEL: Final = 2  # most models put one before the text and one after it
_TOKENS_OF_A_CHARACTER: Final = 0.25  # of English; only how texts compare to each other and to a part matters


class Model(Protocol):
    """A loaded model. `details` tell people what it is; `max_length` is in tokens; `part` is how many texts it is given
    at once at most, and `part_tokens` for how many tokens more it would take as long as for one part more."""

    details: dict[str, Any]
    max_length: int
    part: int
    part_tokens: int

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, uncut."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[float] | None]:
        """A vector for each text, computed at once; None where it holds what is no finite number. Raises whatever the
        model raises."""
        ...

    def free(self) -> None:
        """Let go of memory that is kept for later."""
        ...


def serve_model(settings: dict[str, Any]) -> Embedder:
    """The server of what `settings` name. Raises Unfit."""
    module, _, name = settings["loader"].partition(":")
    model: Model = getattr(importlib.import_module(module), name)(settings)
    return Embedder(model, part=min(settings["maxSize"], model.part), fail_too_long=settings["onTooLong"] == "Fail")


class Embedder:
    """Runs one call at a time; `part` texts at most go to the model at once."""

    def __init__(self, model: Model, *, part: int, fail_too_long: bool) -> None:
        self._model = model
        self._part = part
        self._fail_too_long = fail_too_long
        self.details = model.details

    def run(self, items: list[Any]) -> Iterator[Answer]:
        """See `rowmill_worker.children.serve.Blocking`."""
        answers: list[Answer | None] = [None] * len(items)
        if self._fail_too_long:
            self._find_too_long(items, answers)
        order = sorted((i for i, answer in enumerate(answers) if answer is None), key=lambda i: len(items[i]))
        try:
            sizes = self._cut([items[i] for i in order])
            while sizes:
                part = order[-sizes[-1] :]  # the longest first: what does not fit is found at once
                vectors = self._encode([items[i] for i in part])
                if vectors is None:
                    sizes = self._cut([items[i] for i in order])
                    continue
                for i, vector in zip(part, vectors, strict=True):
                    answers[i] = vector
                del order[-sizes.pop() :]
        except Exception as error:
            yield Failure(0, -1, "ModelError", _told(error), retryable=True)
            return
        yield from (answer for answer in answers if answer is not None)

    def _cut(self, texts: list[str]) -> list[int]:
        most = self._model.max_length
        lengths = [min(len(text) * _TOKENS_OF_A_CHARACTER + _TOKENS_OF_THE_MODEL, most) for text in texts]
        return cut(lengths, most=self._part, fixed=self._model.part_tokens)

    def _find_too_long(self, texts: list[str], answers: list[Answer | None]) -> None:
        limit = self._model.max_length
        # A token is a byte at least: most texts need not be counted.
        suspects = [i for i, text in enumerate(texts) if len(text.encode()) > limit - _TOKENS_OF_THE_MODEL]
        if not suspects:
            return
        for i, count in zip(suspects, self._model.tokens([texts[i] for i in suspects]), strict=True):
            if count > limit:
                told = (
                    f"the text has {count:,} tokens, the model takes {limit:,}; send less of the row, raise maxLength "
                    "where the model takes more, or set onTooLong: Truncate"
                )
                answers[i] = Failure(0, 0, "TextTooLong", told, retryable=False)

    def _encode(self, texts: list[str]) -> list[Answer] | None:
        """Answers to a part; None where memory ran out and a smaller part is to be tried."""
        try:
            vectors = self._model.encode(texts)
        except Exception as error:
            if not _out_of_memory(error):
                if "CUDA error" in str(error):
                    print(f"the GPU is lost to this process: {_told(error)}", file=sys.stderr)  # noqa: T201
                    os._exit(CUDA_LOST)
                raise
            told = _told(error)
        else:
            return [_answer(vector) for vector in vectors]
        # Out of the handler: its traceback would keep the tensors alive.
        self._model.free()
        if len(texts) == 1:
            failure = f"one text alone does not fit into memory: {told}; lower maxLength, or take a larger device"
            return [Failure(0, 0, "OutOfMemory", failure, retryable=True)]
        self._part = max(1, len(texts) // 2)
        print(f"out of memory with {len(texts)} texts at once; {self._part} from now on", file=sys.stderr)  # noqa: T201
        return None


def _answer(vector: list[float] | None) -> Answer:
    if vector is None:
        told = "the vector holds what is no finite number; take dtype Float32 or BFloat16"
        return Failure(0, 0, "InvalidVector", told, retryable=False)
    return msgspec.json.encode(vector)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[: MAX_MESSAGE_CHARS - 200]
