"""YAML to plain values, with the line of each, and nothing guessed.

It reads events, not PyYAML's own tree, so that depth, size and the growth of aliases are bounded before anything is
built, and so that what YAML would silently turn into something else is told instead:

* a field given twice; a name that is no text; tags; several documents;
* `yes`, `no`, `on`, `off`: true or false to some readers, text to others;
* `012`, `0x1F`, `1_000`: numbers to some, text to others; `.inf` and `.nan`, which JSON cannot hold.

Dates stay the text that is written. All findings are collected, each with the path and line of its place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import yaml

from rowmill.templating.errors import shown

MAX_BYTES: Final = 1_048_576
"""Bytes of a manifest."""

MAX_NODES: Final = 100_000
"""Values in a manifest, with all aliases written out."""

MAX_DEPTH: Final = 48
"""Levels of nesting."""

Place = tuple[str | int, ...]

_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_ODD_NUMBER: Final = re.compile(r"[-+]?(?:0[0-9_.]+|0x[0-9a-fA-F_]+|0[ob][0-7_]+|[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?)")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_AMBIGUOUS: Final = {
    word: meaning
    for meaning, words in (("true", ("y", "yes", "on")), ("false", ("n", "no", "off")))
    for base in words
    for word in (base, base.capitalize(), base.upper())
}
_SURROGATE_PAIR: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_UNLIKE_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_STR_TAG: Final = "tag:yaml.org,2002:str"


class Finding(NamedTuple):
    """Something wrong: its place in the document, and what is wrong, what is right."""

    place: Place
    message: str
    line: int | None


class NotReadable(Exception):
    """The text is not one YAML document; the message says where."""


@dataclass
class Document:
    """What was read. `lines` holds the line, from 1, of every place."""

    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_yaml(text: str) -> Document:
    """Read one YAML document; raises NotReadable where there is none to be had."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise NotReadable(
            f"the file is larger than {MAX_BYTES:,} bytes; put the rows into a file of their own (source.uri)"
        )
    for i, char in enumerate(text):
        if char == "\0" or "\ud800" <= char <= "\udfff":
            what = "the character NUL" if char == "\0" else "half of a surrogate pair"
            line = text.count("\n", 0, i) + 1
            raise NotReadable(f"line {line}: holds {what}, which no manifest can; take it out")
    if text.lstrip().startswith("{") and _is_json(text):
        text = _UNLIKE_YAML.sub(_escaped, _SURROGATE_PAIR.sub(_joined, text))
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Reader(yaml.parse(text, Loader=loader)).document()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise NotReadable(f"{at}not YAML: {_reason(exc)}; check indentation, colons and quotes there") from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise NotReadable(f"line {line}: holds a character that YAML does not allow; take it out") from None
    except yaml.YAMLError:
        raise NotReadable("not YAML; check indentation, colons and quotes") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _escaped(found: re.Match[str]) -> str:
    """Characters that stand for themselves in JSON, and that YAML refuses or takes for a line break."""
    return f"\\u{ord(found[0]):04x}"


def _joined(found: re.Match[str]) -> str:
    """JSON writes a character beyond 16 bits as two escapes, which YAML does not know."""
    pair = bytes.fromhex(found[2] + found[3]).decode("utf-16-be")
    return found[1] + pair


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _reason(exc: yaml.MarkedYAMLError) -> str:
    context = f"{exc.context}, " if exc.context else ""
    return f"{context}{exc.problem or 'something is out of place'}".replace("\n", " ")[:200]


class _Reader:
    """Builds values from events. An anchor keeps its events' result; an alias counts it again and shares it."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._found = Document()
        self._anchors: dict[str, tuple[Any, int, int]] = {}
        self._nodes = 0

    def document(self) -> Document:
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    line = _line(event)
                    raise NotReadable(
                        f"line {line}: a second document begins here; a file holds one BatchJob, split it into two"
                    )
                # "---" and then nothing is a document too, of the value null.
                self._found.value = self._node(next(self._events), (), 0)
        if self._found.value is None:
            raise NotReadable("the file is empty; a BatchJob begins with apiVersion: rowmill.dev/v1alpha1")
        return self._found

    def _node(self, event: Any, place: Place, depth: int) -> Any:
        line = _line(event)
        self._found.lines.setdefault(place, line)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line)
        before = self._nodes
        self._count(1, line)
        if depth > MAX_DEPTH:
            raise NotReadable(f"line {line}: nested deeper than {MAX_DEPTH} levels; make it flatter")
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, place, line)
        else:
            if event.tag is not None and not event.implicit:
                self._tell(place, f"has the tag {shown(event.tag)}; tags are not supported, leave it out", line)
            if isinstance(event, yaml.SequenceStartEvent):
                value = self._sequence(place, depth)
            else:
                value = self._mapping(place, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before, depth)
        return value

    def _alias(self, event: Any, line: int) -> Any:
        if event.anchor not in self._anchors:
            raise NotReadable(f"line {line}: *{event.anchor} is used, but no &{event.anchor} stands before it; add it")
        value, nodes, _ = self._anchors[event.anchor]
        self._count(nodes, line)
        return value

    def _sequence(self, place: Place, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*place, len(items)), depth + 1))
        return items

    def _mapping(self, place: Place, depth: int) -> dict[str, Any]:
        given: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        merged: list[Any] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            name = self._name(event, place, line)
            # Where a field stands is where its name stands, not where its first item does.
            self._found.lines.setdefault((*place, name), line)
            value = self._node(next(self._events), (*place, name), depth + 1)
            if name == "<<" and isinstance(event, yaml.ScalarEvent) and not event.style:
                merged += value if isinstance(value, list) else [value]
                if not all(isinstance(m, dict) for m in merged):
                    self._tell(place, "the merge key << takes an alias of a mapping, such as *defaults", line)
                    merged = [m for m in merged if isinstance(m, dict)]
            elif name in first_line:
                self._tell((*place, name), f"is given twice, first in line {first_line[name]}; remove one", line)
            else:
                first_line[name] = line
                given[name] = value
        result: dict[str, Any] = {}
        for mapping in reversed(merged):
            result.update(mapping)
        result.update(given)
        return result

    def _name(self, event: Any, place: Place, line: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise NotReadable(f"line {line}: the name of a field must be text, not a list or mapping; check the colons")
        self._count(1, line)
        text = str(event.value)
        if not event.style and text != "<<":
            value, problem = plain_scalar(text)
            if problem is not None or not isinstance(value, str):
                self._tell(
                    (*place, text), f'the name {text or "(empty)"} is not text to YAML; quote it: "{text}"', line
                )
        return text

    def _scalar(self, event: Any, place: Place, line: int) -> Any:
        text: str = event.value
        if event.tag is not None and not event.implicit[0] and not event.implicit[1] and event.tag != _STR_TAG:
            self._tell(place, f"has the tag {shown(event.tag)}; tags are not supported, leave it out", line)
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            self._tell(place, "holds NUL or half of a surrogate pair, which cannot be stored; take it out", line)
            return text.replace("\0", "").encode("utf-8", "replace").decode()
        if event.style or not event.implicit[0]:
            return text
        value, problem = plain_scalar(text)
        if problem is not None:
            self._tell(place, problem, line)
        return value

    def _count(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise NotReadable(
                f"line {line}: holds more than {MAX_NODES:,} values, aliases written out; "
                "put the rows into a file of their own (source.uri)"
            )

    def _tell(self, place: Place, message: str, line: int) -> None:
        self._found.findings.append(Finding(place, message, line))


def plain_scalar(text: str) -> tuple[Any, str | None]:
    """The value of a text without quotes, and what is wrong with writing it so, if anything."""
    if text in _WORDS:
        return _WORDS[text], None
    if text in _AMBIGUOUS:
        return text, f'{text} may mean {_AMBIGUOUS[text]} or the text; write {_AMBIGUOUS[text]}, or quote it: "{text}"'
    if not text or text[0] not in "+-.0123456789":
        return text, None
    if _INT.fullmatch(text):
        # Beyond 64 bits readers round or refuse; Python itself refuses beyond 4,300 digits.
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            return text, f'is too large for a number; quote it to keep it as text: "{text[:40]}"'
        return int(text), None
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            return text, f'is too large for a number; quote it to keep it as text: "{text[:40]}"'
        return number, None
    if _ODD_NUMBER.fullmatch(text):
        return text, f'{text[:40]} may be read as another number; write it plainly, or quote it: "{text[:40]}"'
    if _NOT_FINITE.fullmatch(text):
        return text, f'{text} is not a number that JSON can hold; quote it if the text is meant: "{text}"'
    return text, None
