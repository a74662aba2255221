"""What a worker and its child say to each other: frames over a pair of sockets.

A frame is four bytes of length (big endian) and so many bytes of MessagePack. The worker opens with `Setup`, the child
answers `Ready` or `Unusable`; then any number of `Call`s, each answered by a `Result` or `Failure` for each of its
items and a `Done`. A result is one frame, so that what a child may make its worker hold is bounded by `MAX_ANSWER`.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

HEADER: Final = struct.Struct(">I")

MAX_RESULT_BYTES: Final = 1_048_576
"""Bytes of a result as JSON; the child makes a failure of a larger one."""

MAX_ANSWER: Final = MAX_RESULT_BYTES + 65_536
"""Bytes of a frame of a child; a longer one is none of ours."""

MAX_MESSAGE_CHARS: Final = 2_000


class Setup(msgspec.Struct, tag="setup"):
    """What the child is to do: the name of a server (see `serve`) and its settings, a JSON object."""

    server: str
    settings: dict[str, Any]


class Call(msgspec.Struct, tag="call"):
    """Items to run together. What an item holds is between the executor and its server."""

    id: int
    items: list[Any]


class Cancel(msgspec.Struct, tag="cancel"):
    """Nobody waits for a call any more. Only a server that runs calls side by side heeds it."""

    id: int


class Ready(msgspec.Struct, tag="ready"):
    """The child can be called; `concurrent` tells that it runs calls side by side. `details` are for the log."""

    concurrent: bool
    details: dict[str, Any]


class Unusable(msgspec.Struct, tag="unusable"):
    """What the manifest asks for cannot be had: `field` below the executor's, and what to do."""

    field: str
    message: str


class Result(msgspec.Struct, tag="result"):
    """An item's result as JSON text."""

    call: int
    index: int
    value: bytes


class Failure(msgspec.Struct, tag="failure"):
    """An item failed; `index` -1 tells that the call did as a whole. The fields are those of a RowError."""

    call: int
    index: int
    error_class: str
    message: str
    retryable: bool
    retry_after: float | None = None


class Done(msgspec.Struct, tag="done"):
    """Nothing more follows for a call."""

    call: int


Request = Setup | Call | Cancel
Reply = Ready | Unusable | Result | Failure | Done

encode: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(Request).decode
decode_reply: Final = msgspec.msgpack.Decoder(Reply).decode


def frame(message: Request | Reply) -> bytes:
    """A message as it goes over the wire."""
    body = encode(message)
    return HEADER.pack(len(body)) + body
