"""An embedding model that is none: small, exact, and out of memory, crashing or wrong where a text asks for it.

A word is a token. A vector tells of the words that were kept, and of nothing else.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Sequence
from typing import Any

from rowmill_worker.children.serve import Unfit

DIMENSIONS = 8
SPECIAL = 2


def load(settings: dict[str, Any]) -> ModelDouble:
    """A model whose name is how many texts fit into its memory at once: `double-16`."""
    kind, _, fits = settings["model"].partition("-")
    if kind != "double":
        raise Unfit("model", f"{settings['model']} cannot be loaded (OSError: no such folder); give a folder")
    if settings["device"] == "CUDA":
        raise Unfit("device", "is CUDA, and the worker sees no GPU")
    return ModelDouble(fits=int(fits), most=settings["maxLength"] or 32, normalize=settings["normalize"])


class ModelDouble:
    """See `rowmill_worker.children.embedder.Model`."""

    part = 64
    part_tokens = 4

    def __init__(self, *, fits: int, most: int, normalize: bool) -> None:
        self.details: dict[str, Any] = {"device": "none", "dimensions": DIMENSIONS}
        self.details["threads_wait"] = os.environ.get("OMP_WAIT_POLICY")
        self.max_length = most
        self._fits = fits
        self._normalize = normalize
        self.parts: list[int] = []
        self.freed = 0

    def tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + SPECIAL for text in texts]

    def encode(self, texts: Sequence[str]) -> list[list[float] | None]:
        self.parts.append(len(texts))
        if len(texts) > self._fits or "too big" in texts:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        for text in texts:
            match text:
                case "exit":
                    os._exit(9)
                case "gpu lost":
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                case "boom":
                    raise ValueError("this model cannot take that")
                case "hang":
                    time.sleep(1_000)
        return [None if text == "nan" else self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        kept = " ".join(text.split()[: self.max_length - SPECIAL])
        numbers = [(byte - 127.5) / 64 for byte in hashlib.sha256(kept.encode()).digest()[:DIMENSIONS]]
        length = math.hypot(*numbers) if self._normalize else 1.0
        return [round(number / length, 9) for number in numbers]

    def free(self) -> None:
        self.freed += 1
