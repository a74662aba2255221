"""The filters that templates may use: Jinja's own names and meaning, with every result bounded.

Where Jinja would guess in silence, these tell: `int` and `float` of a text that is no number fail unless a default is
given. `tojson` writes plain JSON, without the escapes that Jinja adds for HTML.
"""

from __future__ import annotations

import base64
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote as percent_encode
from urllib.parse import quote_plus

from jinja2 import Undefined, pass_context
from jinja2.filters import (
    do_capitalize,
    do_dictsort,
    do_max,
    do_min,
    do_sort,
    do_title,
    do_truncate,
    do_unique,
    do_wordcount,
    sync_do_map,
    sync_do_reject,
    sync_do_rejectattr,
    sync_do_select,
    sync_do_selectattr,
)

from rowmill.templating.bounds import (
    ITEM_WORK,
    MAX_DEPTH,
    MAX_OUTPUT_CHARS,
    RenderContext,
    as_text,
    cost,
    to_json,
    weigh,
)
from rowmill.templating.errors import Refused

Filter = Callable[..., Any]
_MISSING: Final = object()


def require(*values: Any) -> None:
    """Fail, with the missing name, on a value that is not there."""
    for value in values:
        if isinstance(value, Undefined):
            value._fail_with_undefined_error()


def replace(context: RenderContext, text: str, old: str, new: str, count: int = -1) -> str:
    """`text.replace(old, new)`, whose result is measured before it is made."""
    if not isinstance(old, str) or not isinstance(new, str):
        raise Refused("replace takes two texts: what is replaced and what with")
    found = text.count(old)
    times = found if count is None or count < 0 else min(found, count)
    context.make(max(0, len(text) + times * (len(new) - len(old))))
    return text.replace(old, new, times)


def join(context: RenderContext, items: Any, separator: str = "", attribute: Any = None) -> str:
    """The items, each as text, with `separator` between them; measured as it grows."""
    if not isinstance(separator, str):
        raise Refused("join takes the text that goes between the items")
    if attribute is not None:
        items = sync_do_map(context, items, attribute=attribute)
    parts: list[str] = []
    total = 0
    for item in items:
        parts.append(as_text(context, item))
        total += len(parts[-1]) + len(separator)
        if total > MAX_OUTPUT_CHARS:
            context.make(total)
    context.make(total)
    return separator.join(parts)


def _text(function: Filter) -> Filter:
    """A filter of one text; other values are taken as text first."""

    def run(context: RenderContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = as_text(context, value)
        context.work(len(text))
        return function(text, *args, **kwargs)

    return _accepting(run, function, after=0)


def _items(function: Filter) -> Filter:
    """A filter of a list, which is realised and counted first."""

    def run(context: RenderContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        items = _listed(context, value)
        return function(context, items, *args, **kwargs)

    return _accepting(run, function)


def _listed(context: RenderContext, value: Any) -> list[Any]:
    if isinstance(value, Iterator):
        return list(context.steps(value))
    if isinstance(value, str | list | tuple | dict | range):
        context.work(ITEM_WORK * len(value))
        return list(value)
    raise Refused("this filter needs a list")


def _default(context: RenderContext, value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def _int(context: RenderContext, value: Any, default: Any = _MISSING, base: int = 10) -> Any:
    def read() -> int:
        if not isinstance(value, str):
            return int(value)
        if not isinstance(base, int) or not 2 <= base <= 36:
            raise Refused("int takes a base from 2 to 36")
        try:
            return int(value, base)
        except ValueError:
            if base != 10:
                raise
            return int(float(value))

    return _number(read, default, "int", "a whole number")


def _float(context: RenderContext, value: Any, default: Any = _MISSING) -> Any:
    return _number(lambda: float(value), default, "float", "a number")


def _number(read: Callable[[], Any], default: Any, name: str, what: str) -> Any:
    try:
        return read()
    except (TypeError, ValueError, OverflowError):
        if default is not _MISSING:
            return default
        raise Refused(f"the value is not {what}; correct the row, or give a default: {name}(default=0)") from None


def _round(context: RenderContext, value: Any, precision: int = 0, method: str = "common") -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("round needs a number; for a text write float | round")
    if not isinstance(precision, int) or not 0 <= precision <= 15:
        raise Refused("round takes a precision from 0 to 15")
    rounders: dict[str, Callable[[float], float]] = {"ceil": math.ceil, "floor": math.floor}
    if method == "common":
        return round(value, precision)
    if method not in rounders:
        raise Refused('round takes the method "common", "ceil" or "floor"')
    return rounders[method](value * 10**precision) / 10**precision


def _sum(context: RenderContext, items: list[Any], attribute: Any = None, start: float = 0) -> Any:
    numbers = items if attribute is None else list(sync_do_map(context, items, attribute=attribute))
    require(*numbers)
    if not all(isinstance(n, int | float) for n in [start, *numbers]):
        raise Refused("sum needs a list of numbers; for texts write map('float') | sum")
    return sum(numbers, start)


def _abs(context: RenderContext, value: Any) -> Any:
    if not isinstance(value, int | float):
        raise Refused("abs needs a number; for a text write float | abs")
    return abs(value)


def _length(context: RenderContext, value: Any) -> int:
    if isinstance(value, Iterator):
        return len(_listed(context, value))
    if not isinstance(value, str | list | tuple | range | Mapping):
        raise Refused("length needs a text, a list or an object")
    return len(value)


def _end(index: int) -> Filter:
    def run(context: RenderContext, items: list[Any]) -> Any:
        if not items:
            return context.environment.undefined("there is no such item: the list is empty")
        return items[index]

    return run


def _pairs(context: RenderContext, value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, Mapping):
        raise Refused("items needs an object")
    context.work(len(value))
    return list(value.items())


def _dictsort(context: RenderContext, value: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(value, Mapping):
        raise Refused("dictsort needs an object")
    context.work(ITEM_WORK * len(value))
    return do_dictsort(value, *args, **kwargs)


def _reverse(context: RenderContext, value: Any) -> Any:
    if isinstance(value, str):
        context.work(len(value))
        return value[::-1]
    return _listed(context, value)[::-1]


def _tojson(context: RenderContext, value: Any, indent: int | None = None) -> str:
    text = to_json(context, value)
    if indent is None:
        return text
    if not isinstance(indent, int) or not 0 <= indent <= 8:
        raise Refused("tojson takes an indent from 0 to 8")
    # Each token may start a line that is indented by its depth.
    context.make(len(text) + len(text) * (indent + 1) * _depth(json.loads(text)))
    return json.dumps(json.loads(text), ensure_ascii=False, indent=indent)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 1


def _fromjson(context: RenderContext, value: Any) -> Any:
    if not isinstance(value, str):
        raise Refused("fromjson needs a text")
    context.work(ITEM_WORK * len(value))
    try:
        parsed = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("fromjson: the value is not JSON; correct the row") from None
    weigh(parsed, MAX_OUTPUT_CHARS * MAX_DEPTH)  # refuses what is nested too deeply
    return parsed


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _split(text: str, separator: str | None = None, maxsplit: int = -1) -> list[str]:
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise Refused("split takes the text to split at, at least one character, or nothing for white space")
    return text.split(separator, maxsplit)


def _urlencode(context: RenderContext, value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = [(as_text(context, k), as_text(context, v)) for k, v in value.items()]
        context.make(3 * sum(len(k) + len(v) + 2 for k, v in pairs))
        return "&".join(f"{quote_plus(k)}={quote_plus(v)}" for k, v in pairs)
    return _quote(context, value, "/")


def _quote(context: RenderContext, value: Any, safe: str = "") -> str:
    text = as_text(context, value)
    context.make(len(text))
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise Refused("the value holds half of a surrogate pair, which no URL can carry") from None
    return percent_encode(raw, safe=safe)


def _b64encode(context: RenderContext, value: Any) -> str:
    text = as_text(context, value)
    context.make(2 * len(text))
    return base64.b64encode(text.encode()).decode()


def _truncate(
    context: RenderContext,
    value: Any,
    length: int = 255,
    killwords: bool = False,
    end: str = "...",
    leeway: int | None = None,
) -> str:
    text = as_text(context, value)
    context.work(len(text))
    if not isinstance(length, int) or not isinstance(end, str) or length < len(end):
        raise Refused("truncate takes a length that is at least as long as its end text")
    return do_truncate(context.environment, text, length, killwords, end, leeway)


def _each(function: Filter) -> Filter:
    """One of Jinja's lazy filters, realised and counted at once."""

    def run(context: RenderContext, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(context.steps(function(context, _listed(context, value), *args, **kwargs)))

    run.accepts = None  # type: ignore[attr-defined]  # the arguments are those of another filter or test
    return run


def _in_environment(function: Filter) -> Filter:
    def run(context: RenderContext, items: list[Any], *args: Any, **kwargs: Any) -> Any:
        require(*items)
        result = function(context.environment, items, *args, **kwargs)
        return list(result) if isinstance(result, Iterator) else result

    return _accepting(run, function)


def _guarded(function: Filter) -> Filter:
    @pass_context
    def run(context: RenderContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        require(value, *args, *kwargs.values())
        result = function(context, value, *args, **kwargs)
        if isinstance(result, str):
            context.make(len(result))
        else:
            context.work(cost(result))
        return result

    return _accepting(run, function)


def _accepting(run: Filter, function: Filter, *, after: int = 1) -> Filter:
    """Note on `run` what arguments `function` takes after its first `after` parameters, the value among them."""
    signature = getattr(function, "accepts", _MISSING)
    if signature is _MISSING:
        signature = inspect.signature(function)
        signature = signature.replace(parameters=list(signature.parameters.values())[after:])
    run.accepts = signature  # type: ignore[attr-defined]
    return run


def misfit(function: Filter, given: int, keywords: list[str]) -> str | None:
    """Why a filter cannot be called with `given` arguments and these keywords, or None."""
    signature: inspect.Signature | None = getattr(function, "accepts", None)
    if signature is None:
        return None
    try:
        signature.bind(None, *[None] * given, **dict.fromkeys(keywords))
    except TypeError as exc:
        return str(exc)
    return None


@cache
def filter_table() -> Mapping[str, Filter]:
    """Every filter by name. `default` alone may be given a value that is missing.

    Made once: filters hold no state, and asking each for its signature takes milliseconds, in which whoever checks a
    manifest does nothing else.
    """
    plain: dict[str, Filter] = {
        "abs": _abs,
        "b64encode": _b64encode,
        "capitalize": _text(do_capitalize),
        "dictsort": _dictsort,
        "first": _items(_end(0)),
        "float": _float,
        "fromjson": _fromjson,
        "int": _int,
        "items": _pairs,
        "join": join,
        "last": _items(_end(-1)),
        "length": _length,
        "list": _items(lambda context, items: items),
        "lower": _text(str.lower),
        "map": _each(sync_do_map),
        "max": _items(_in_environment(do_max)),
        "min": _items(_in_environment(do_min)),
        "quote": _quote_all,
        "reject": _each(sync_do_reject),
        "rejectattr": _each(sync_do_rejectattr),
        "replace": _replace,
        "reverse": _reverse,
        "round": _round,
        "select": _each(sync_do_select),
        "selectattr": _each(sync_do_selectattr),
        "sort": _items(_in_environment(do_sort)),
        "split": _text(_split),
        "string": as_text,
        "sum": _items(_sum),
        "title": _text(do_title),
        "tojson": _tojson,
        "trim": _text(str.strip),
        "truncate": _truncate,
        "unique": _items(_in_environment(do_unique)),
        "upper": _text(str.upper),
        "urlencode": _urlencode,
        "wordcount": _text(do_wordcount),
    }
    table = {name: _guarded(function) for name, function in plain.items()}
    table["count"] = table["length"]
    table["default"] = table["d"] = pass_context(_default)
    return MappingProxyType(table)


def _replace(context: RenderContext, value: Any, old: str, new: str, count: int = -1) -> str:
    return replace(context, as_text(context, value), old, new, count)


def _quote_all(context: RenderContext, value: Any) -> str:
    return _quote(context, value)
