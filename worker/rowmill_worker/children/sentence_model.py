"""A sentence-transformers model, as `embedder` wants one. It imports torch when it loads one, and only in a child."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rowmill_worker.children.serve import Unfit

PART_ON_CPU: Final = 32
"""A CPU gains little from more texts at once."""

PART_ON_GPU: Final = 4096
PART_TOKENS_ON_CPU: Final = 128
"""What a part costs by itself. On one core it was as much as 35 tokens (six layers, 384 dimensions); where threads have
to wait for a core it is several times that, and too few parts cost less than too many."""

PART_TOKENS_ON_GPU: Final = 8192
"""A GPU is hardly busy below so many; an estimate. Only of batches far above the default are parts cut by it."""

_DTYPES: Final = {"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"}
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def load(settings: dict[str, Any]) -> SentenceModel:
    """The model that `settings` name. Raises Unfit."""
    try:
        numpy, torch, sentence_transformers = map(import_module, ("numpy", "torch", "sentence_transformers"))
    except ImportError as error:
        raise Unfit(
            "",
            f"the worker has no {error.name or 'sentence-transformers'}; build an image of workers with the extra "
            "embeddings of Rowmill, and name it in spec.workers.podTemplate",
        ) from None
    cuda = torch.cuda.is_available()
    if settings["device"] == "CUDA" and not cuda:
        raise Unfit(
            "device",
            "is CUDA, and the worker sees no GPU that its torch can use; ask for one by spec.workers.gpu, install a "
            "torch built for CUDA, or take Auto",
        )
    device = "cuda" if cuda and settings["device"] != "CPU" else "cpu"
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ and (cpus := _cpu_limit()):
        torch.set_num_threads(cpus)
    dtype = _DTYPES.get(settings["dtype"]) or ("float16" if device == "cuda" else "float32")
    try:
        model = sentence_transformers.SentenceTransformer(
            settings["model"], device=device, revision=settings.get("revision"), trust_remote_code=False
        )
        model.to(getattr(torch, dtype))
        model.eval()
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")[:500]
        raise Unfit(
            "model",
            f"{settings['model']} cannot be loaded ({type(error).__name__}: {first}); give a folder where the worker "
            "runs that holds a sentence-transformers model, or a name that is in its cache (HF_HOME) or can be fetched",
        ) from None
    own = model.max_seq_length
    wanted = settings.get("maxLength")
    model.max_seq_length = min(x for x in (own, wanted, 131_072) if x is not None)
    return SentenceModel(
        model,
        torch=torch,
        numpy=numpy,
        normalize=settings["normalize"],
        details={
            "model": settings["model"],
            "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
            "dtype": dtype,
            "max_length": model.max_seq_length,
            "dimensions": _dimensions(model),
        },
        part=PART_ON_GPU if device == "cuda" else PART_ON_CPU,
        part_tokens=PART_TOKENS_ON_GPU if device == "cuda" else PART_TOKENS_ON_CPU,
    )


class SentenceModel:
    """See `rowmill_worker.children.embedder.Model`."""

    def __init__(
        self,
        model: Any,
        *,
        torch: Any,
        numpy: Any,
        normalize: bool,
        details: dict[str, Any],
        part: int,
        part_tokens: int,
    ) -> None:
        self._model, self._torch, self._numpy, self._normalize = model, torch, numpy, normalize
        self.details, self.part, self.part_tokens = details, part, part_tokens
        self.max_length: int = model.max_seq_length

    def tokens(self, texts: Sequence[str]) -> list[int]:
        counted = self._model.tokenizer(list(texts), truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in counted["input_ids"]]

    def encode(self, texts: Sequence[str]) -> list[list[float] | None]:
        found = self._model.encode(
            list(texts),
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=self._normalize,
        )
        vectors = found.float().cpu().numpy()
        finite = self._numpy.isfinite(vectors).all(axis=1)
        if not finite.all():
            vectors[~finite] = 0.0
        return [row if fine else None for row, fine in zip(self._short(vectors).tolist(), finite, strict=True)]

    def _short(self, vectors: Any) -> Any:
        """Each number as the double nearest to its nine digits, so that its text is as short as it can exactly be."""
        numpy = self._numpy
        wide = vectors.astype(numpy.float64)
        size = numpy.abs(wide)
        digits = 8 - numpy.floor(numpy.log10(numpy.where(size > 0, size, 1.0))).astype(numpy.int64)
        # Powers of ten up to 22 are exact, so that one rounding each way is right.
        scale = numpy.power(10.0, numpy.clip(digits, 0, 22))
        return numpy.round(wide * scale) / scale

    def free(self) -> None:
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()


def _dimensions(model: Any) -> int | None:
    # The older name warns where there is the newer one.
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    found: int | None = ask()
    return found


def _cpu_limit() -> int | None:
    """CPUs that this container may use, rounded up; None where that is not told."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return None
    return max(1, math.ceil(int(quota) / int(period))) if quota.isdigit() else None
