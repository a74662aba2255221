"""What ComfyUI's answers mean: refusals, its queue and history, how a prompt ended and what it made. Pure.

Facts of its server (server.py and execution.py of its source):

* `POST /prompt` answers 200 `{"prompt_id", "number", "node_errors"}`, where node_errors name outputs that were dropped,
  or 400 `{"error": {"type", "message", "details"}, "node_errors"}`; a newer server takes the prompt_id that it is told,
  an older one makes its own;
* an item of the queue, and `prompt` in an entry of the history, is `[number, prompt_id, prompt, extra_data, …]`;
* a prompt goes from pending to running to history, each step at once: looked for in the queue first and in the history
  then, it cannot be missed;
* the history lives in memory: bounded, and lost when the server restarts.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from rowmill_worker.executors.answer import Answer
from rowmill_worker.executors.classify import shorten
from rowmill_worker.executors.protocol import RowError

PATH: Final = "spec.executor.comfyui"
MAX_FILES: Final = 1_000
"""Files of one prompt; more end the row with class TooManyFiles."""

_NAMESPACE: Final = uuid.UUID("6f2a6a2e-52a5-5b9c-8f0b-3c1d5a0e9a77")
_MARK: Final = "rowmill"
_DECLARED: Final = re.compile(r"key-[0-9a-f]{32}")
_NODES_TOLD: Final = 3
_OUT_OF_MEMORY: Final = re.compile(
    r"out ?of ?memory|allocation on device|not enough (gpu )?memory|CUBLAS_STATUS_ALLOC", re.I
)
_PASSES: Final = re.compile(
    r"rate.?limit|too many requests|connection (error|reset|refused|aborted)|timed? ?out|temporarily|bad gateway|"
    r"service unavailable|overloaded|\b(429|502|503|504)\b",
    re.IGNORECASE,
)
"""Words of a node's error that may pass by itself (nodes call services too)."""
_MODEL: Final = re.compile(r"(?:ckpt|checkpoint|lora|vae|unet|clip|control_?net|model|style|gligen|upscale)\w*", re.I)
_MODEL_FILE: Final = re.compile(r"\.(safetensors|sft|ckpt|pth?|bin|gguf|onnx)\b", re.IGNORECASE)


def token_of(key: str, prompt: bytes) -> str:
    """What names a row's prompt at the server, whoever submits it.

    A declared key (`spec.dedupe`) stands for itself: it pins the workflow, and rows that differ elsewhere are the same
    by declaration. A row's number does not: a run whose ledger was deleted may begin anew with another table or
    workflow, so there the content counts too.
    """
    if _DECLARED.fullmatch(key):
        prompt = b""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass") + b"\0" + prompt, digest_size=16).hexdigest()


def prompt_id(token: str, number: int) -> str:
    """The id that is asked for, of the `number`th prompt (from 0) of a token: one more after each that failed."""
    return str(uuid.uuid5(_NAMESPACE, f"{token}/{number}"))


def envelope(prompt: bytes, *, token: str, number: int, client_id: str, key: str) -> bytes:
    """The body of `POST /prompt`; `prompt` is JSON already."""
    return msgspec.json.encode(
        {
            "prompt": msgspec.Raw(prompt),
            "prompt_id": prompt_id(token, number),
            "client_id": client_id,
            "extra_data": {_MARK: {"token": token, "key": key}},
        }
    )


def encoded(body: Any) -> bytes:
    """A body of the server's other routes."""
    return msgspec.json.encode(body)


class Queue(NamedTuple):
    """Prompts that wait or run: prompt id to token ("" for those of others)."""

    running: Mapping[str, str]
    pending: Mapping[str, str]

    def has(self, prompt: str) -> bool:
        """Whether a prompt waits or runs."""
        return prompt in self.running or prompt in self.pending

    def of_token(self, token: str) -> str | None:
        """The prompt of a row that was submitted before."""
        for prompts in (self.running, self.pending):
            for found, its_token in prompts.items():
                if its_token == token:
                    return found
        return None


class _Listing(msgspec.Struct):
    # Items hold whole workflows: only what is looked at is decoded.
    queue_running: list[list[msgspec.Raw]]
    queue_pending: list[list[msgspec.Raw]]


_LISTING: Final = msgspec.json.Decoder(_Listing)


def queue_of(answer: Answer) -> Queue:
    """What `GET /queue` says. Raises RowError for what is none."""
    try:
        listing = _LISTING.decode(answer.body)
        running, pending = (
            {_text(item[1]): _token(msgspec.json.decode(item[3])) for item in items if len(item) > 3}
            for items in (listing.queue_running, listing.queue_pending)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise not_comfyui(answer.origin, "a queue") from None
    return Queue(running, pending)


def history_of(answer: Answer) -> dict[str, Any]:
    """What `GET /history…` says: prompt id to entry. Raises RowError for what is none."""
    try:
        found = msgspec.json.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise not_comfyui(answer.origin, "a history")
    return found


def succeeded_of_token(history: Mapping[str, Any], token: str) -> tuple[str, Mapping[str, Any]] | None:
    """The newest success of a row among the history's entries, which are the oldest first."""
    for found, entry in reversed(list(history.items())):
        prompt = entry.get("prompt")
        extra = prompt[3] if isinstance(prompt, list) and len(prompt) > 3 else None
        if _token(extra) == token and not has_failed(entry):
            return found, entry
    return None


def accepted(answer: Answer, *, wanted: Collection[str]) -> tuple[str, RowError | None]:
    """The id that a submitted prompt has, and the failure where the server dropped an output that is `wanted` (all,
    when empty). Raises RowError for what is no such answer."""
    try:
        told = msgspec.json.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = None
    found = told.get("prompt_id") if isinstance(told, dict) else None
    if not isinstance(found, str) or not re.fullmatch(r"[-A-Za-z0-9_]{1,128}", found):
        raise not_comfyui(answer.origin, "a prompt_id")
    errors = told.get("node_errors")
    if not isinstance(errors, dict) or not errors:
        return found, None
    dropped = {str(node) for error in errors.values() for node in _items(error, "dependent_outputs")}
    if wanted and not dropped & set(wanted) and not set(errors) & set(wanted):
        return found, None
    return found, _invalid_nodes(errors, answer.origin, str)


def refusal_of(redact: Callable[[str], str]) -> Callable[[Answer, str, float | None], RowError | None]:
    """Classes an answer that is no success; None for what says enough by its status."""

    def classed(reply: Answer, excerpt: str, retry_after: float | None) -> RowError | None:
        if reply.url.path.endswith("/prompt") and reply.status in (429, 503):
            return RowError(
                "QueueFull",
                f"{reply.origin} answered {reply.status}: it takes no more prompts now; lower "
                "spec.concurrency.perWorker, or set spec.limits.maxInFlight",
                retryable=True,
                retry_after=retry_after,
            )
        if reply.status != 400:
            return None
        try:
            told = msgspec.json.decode(reply.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # the beginning of a long one: its status and first words are told
        return _refused(told, reply.origin, redact) if isinstance(told, dict) else None

    return classed


def _refused(told: Mapping[str, Any], origin: str, redact: Callable[[str], str]) -> RowError | None:
    error = told.get("error")
    if isinstance(error, str):
        error = {"type": "", "message": error}
    if not isinstance(error, dict):
        return None
    kind, message = str(error.get("type", "")), redact(str(error.get("message", "")))
    nodes = told.get("node_errors")
    if isinstance(nodes, dict) and nodes:
        return _invalid_nodes(nodes, origin, redact)
    details = redact(str(error.get("details") or ""))
    said = shorten(f"{message} {details}".strip())
    if kind == "missing_node_type" or "does not exist" in message:
        return RowError(
            "MissingNode",
            f"{origin} has no such node: {said}; install the custom node there, or correct {PATH}.workflow",
            retryable=False,
        )
    return RowError(
        "InvalidWorkflow",
        f"{origin} refuses the workflow ({shorten(kind or 'error', 60)}): {said}; check {PATH}.workflow",
        retryable=False,
    )


def _invalid_nodes(errors: Mapping[str, Any], origin: str, redact: Callable[[str], str]) -> RowError:
    """What is wrong with nodes' inputs: a model that the server does not have, or else something of the row's."""
    told: list[str] = []
    missing = False
    for node, error in errors.items():
        name = error.get("class_type") if isinstance(error, dict) else None
        for one in _items(error, "errors"):
            if not isinstance(one, dict):
                continue
            kind, details = str(one.get("type", "")), str(one.get("details") or one.get("message") or kind_of(one))
            missing |= kind == "value_not_in_list" and _names_model(one, details)
            # A list of what the server has may be long: the value comes first.
            told.append(f"node {shorten(str(node), 40)} ({shorten(str(name), 40)}): {shorten(redact(details), 140)}")
    said = "; ".join(told[:_NODES_TOLD]) + (f"; and {len(told) - _NODES_TOLD} more" if len(told) > _NODES_TOLD else "")
    if missing:
        return RowError(
            "MissingModel",
            f"{origin} does not have a model that the workflow names: {said}; put it there, or correct {PATH}.workflow",
            retryable=False,
        )
    return RowError(
        "InvalidInputs",
        f"{origin} refuses inputs of the workflow: {said}; check {PATH}.workflow and the columns that it uses",
        retryable=False,
    )


def kind_of(error: Mapping[str, Any]) -> str:
    """An error's type as words."""
    return str(error.get("type", "an error")).replace("_", " ")


def _names_model(error: Mapping[str, Any], details: str) -> bool:
    info = error.get("extra_info")
    name = info.get("input_name") if isinstance(info, dict) else None
    # Any choice may be missing from a list (a sampler's name, say): a model is told by its input's name or its file.
    return (
        isinstance(name, str) and _MODEL.fullmatch(name) is not None and name != "model_type"
    ) or _MODEL_FILE.search(details.partition(" not in ")[0]) is not None


def has_failed(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of the history is of a prompt that did not come to its end."""
    status = entry.get("status")
    if not isinstance(status, dict):
        return not entry.get("outputs")
    return status.get("status_str") != "success"


def was_interrupted(entry: Mapping[str, Any]) -> bool:
    """Whether a prompt ended because somebody asked for it."""
    return has_failed(entry) and any(
        isinstance(message, list) and message[:1] == ["execution_interrupted"]
        for message in _items(entry.get("status"), "messages")
    )


def require_success(entry: Mapping[str, Any], *, origin: str, redact: Callable[[str], str]) -> None:
    """Raise RowError for an entry of a prompt that failed."""
    if not has_failed(entry):
        return
    status = entry.get("status")
    messages = _items(status, "messages")
    for message in reversed([m for m in messages if isinstance(m, list) and len(m) == 2]):
        kind, data = message
        data = data if isinstance(data, dict) else {}
        node = f"node {shorten(str(data.get('node_id')), 40)} ({shorten(str(data.get('node_type')), 60)})"
        if kind == "execution_interrupted":
            raise RowError(
                "Interrupted", f"the prompt was interrupted at {origin}, in {node}; it runs anew", retryable=True
            )
        if kind == "execution_error":
            raised, words = str(data.get("exception_type", "")), redact(str(data.get("exception_message", "")))
            said = f"{origin}: {node} failed with {shorten(raised, 80)}: {shorten(words)}"
            if _OUT_OF_MEMORY.search(f"{raised} {words}"):
                raise RowError(
                    "OutOfMemory",
                    f"{said}; let it have more memory, or make images and batches in {PATH}.workflow smaller",
                    retryable=True,
                )
            raise RowError("NodeFailed", said, retryable=_PASSES.search(f"{raised} {words}") is not None)
    raise RowError("PromptFailed", f"{origin} tells that the prompt failed, and not why; see its log", retryable=False)


class File(NamedTuple):
    """A file that a prompt made, as the server names it."""

    node: str
    name: str
    subfolder: str
    folder: str
    """`output`, `temp` or `input`."""

    @property
    def query(self) -> dict[str, str]:
        """Parameters of `GET /view`."""
        return {"filename": self.name, "subfolder": self.subfolder, "type": self.folder}

    @property
    def media_type(self) -> str:
        """By its name."""
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    def stored_as(self, seq: int, index: int) -> str:
        """Its name in a store: the same for every attempt at the row, and safe as a part of a path."""
        suffix = re.search(r"\.[A-Za-z0-9]{1,10}$", self.name)
        node = re.sub(r"[^A-Za-z0-9-]", "_", self.node)[:64]
        return f"{seq}-{index}-{node}{suffix[0].lower() if suffix else ''}"


class Made(NamedTuple):
    """What a prompt made. `values` are by node what is no file: texts, numbers."""

    files: tuple[File, ...]
    values: Mapping[str, Mapping[str, Any]]


def made_by(entry: Mapping[str, Any], *, wanted: Collection[str], origin: str) -> Made:
    """The outputs of the `wanted` nodes (all, when empty). Raises RowError where there are none."""
    outputs = entry.get("outputs")
    outputs = outputs if isinstance(outputs, dict) else {}
    files: list[File] = []
    values: dict[str, dict[str, Any]] = {}
    for node in wanted or outputs:
        told = outputs.get(node)
        for name, items in told.items() if isinstance(told, dict) else ():
            listed = items if isinstance(items, list) else [items]
            found = [File(node, *named) for item in listed if (named := _named(item)) is not None]
            files += found
            if not found and name != "animated" and items not in (None, []):
                values.setdefault(node, {})[name] = items
    if not files and not values:
        nodes = f"nodes {', '.join(wanted)}" if wanted else "any node"
        raise RowError(
            "NoOutput",
            f"{origin} ran the prompt and told no output of {nodes}; a prompt all of whose nodes were cached makes "
            f"none: let a seed or the file's prefix in {PATH}.workflow change with the row, and check outputNodes",
            retryable=False,
        )
    if len(files) > MAX_FILES:
        raise RowError(
            "TooManyFiles",
            f"the prompt made {len(files):,} files; at most {MAX_FILES:,} are taken; name fewer in {PATH}.outputNodes",
            retryable=False,
        )
    return Made(tuple(files), values)


def not_comfyui(origin: str, what: str) -> RowError:
    """The failure of an answer that ComfyUI does not give."""
    return RowError(
        "InvalidAnswer", f"{origin} answered something that is not {what}; check that {PATH}.url is ComfyUI's",
        retryable=False,
    )  # fmt: skip


def _named(item: Any) -> tuple[str, str, str] | None:
    name = item.get("filename") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name:
        return None
    return name, str(item.get("subfolder") or ""), str(item.get("type") or "output")


def _token(extra: Any) -> str:
    mark = extra.get(_MARK) if isinstance(extra, dict) else None
    token = mark.get("token") if isinstance(mark, dict) else None
    return token if isinstance(token, str) else ""


def _text(raw: msgspec.Raw) -> str:
    return str(msgspec.json.decode(raw))


def _items(value: Any, name: str) -> Iterator[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    yield from found if isinstance(found, list) else ()
