"""What one render may use, and how values become text or JSON within it.

A template is written by whoever writes the manifest and is run for every row in the worker's own event loop, so
that it must neither grow without bound nor take long:

* *output*: the characters of everything a value renders to, all leaves together;
* *work*: characters and items that filters, methods and operators read or make. Counted, not timed, so that a slow
  machine never fails a row that a fast one would let through;
* *steps*: turns of loops, all together;
* *processor seconds*, of this thread, looked at once a turn: the last resort for what is not counted. A machine that
  stalls spends none.

The invariant: nothing is made before its size was compared with what is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from jinja2 import Environment, Undefined
from jinja2.nodes import EvalContext
from jinja2.runtime import Context

from rowmill.templating.errors import Refused

MAX_TEMPLATE_CHARS: Final = 65_536
"""Characters of one leaf's template."""

MAX_OUTPUT_CHARS: Final = 4_194_304
"""Characters that one value (a whole body) may render to; also of any text made on the way."""

MAX_WORK: Final = 67_108_864
"""Characters and items that one render may read and make on the way."""

MAX_STEPS: Final = 10_000
"""Turns of loops in one render; also the longest `range()`."""

MAX_LOOP_SECONDS: Final = 2.0
"""Processor seconds after which a render that is still looping is ended."""

MAX_INT_BITS: Final = 4_096
"""Bits of a whole number made by arithmetic."""

ITEM_WORK: Final = 32
"""Work of one item that Python handles on its own, where a character of a long text costs 1."""

MAX_DEPTH: Final = 64
"""Levels of nesting in an expression and in a value."""

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class RenderContext(Context):
    """The names of one render and what is left of its bounds. One a render: never shared between threads."""

    def __init__(
        self,
        environment: Environment,
        eval_ctx: EvalContext,
        names: dict[str, Any],
        cpu_clock: Callable[[], float],
    ) -> None:
        # Not the base class's: it builds an EvalContext and copies that a render of a few expressions never looks at.
        self.environment = environment
        self.eval_ctx = eval_ctx
        self.parent = names
        self.vars = {}
        self.exported_vars = set()
        self.name = None
        self.globals_keys = set()
        self.blocks = {}
        self.output_left = MAX_OUTPUT_CHARS
        self.work_left = MAX_WORK
        self.steps_left = MAX_STEPS
        self.cpu_clock = cpu_clock
        self.loop_began: float | None = None

    def work(self, amount: int) -> None:
        """Count work that is about to be done; raises Refused past the bound."""
        self.work_left -= amount
        if self.work_left < 0:
            raise Refused(f"it works through more than {MAX_WORK:,} characters for one row; make it do less")

    def make(self, chars: int) -> None:
        """Like `work`, for a text that is about to be made and may not be longer than an output."""
        if chars > MAX_OUTPUT_CHARS:
            raise Refused(f"it makes a value of more than {MAX_OUTPUT_CHARS:,} characters; make it shorter")
        self.work(chars)

    def emit(self, chars: int) -> None:
        """Count what goes into the rendered value."""
        self.output_left -= chars
        if self.output_left < 0:
            raise Refused(f"it renders to more than {MAX_OUTPUT_CHARS:,} characters; send less of the row")

    def steps(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop, counted."""
        if self.loop_began is None:
            self.loop_began = self.cpu_clock()
        for item in items:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise Refused(f"its loops turn more than {MAX_STEPS:,} times; make them shorter")
            if self.cpu_clock() - self.loop_began > MAX_LOOP_SECONDS:
                raise Refused(f"its loops take more than {MAX_LOOP_SECONDS:g} s of processor time; make them shorter")
            yield item


def cost(value: Any) -> int:
    """What a value that was made counts for: characters of a text, `ITEM_WORK` for each item of a list."""
    if isinstance(value, str):
        return len(value)
    return ITEM_WORK * len(value) if isinstance(value, list | tuple | dict) else 1


def weigh(value: Any, limit: int, depth: int = 0) -> int:
    """About how many characters `value` takes as JSON; stops a little past `limit`. Raises Refused when too deep."""
    if isinstance(value, str):
        return len(value) + 2
    if not isinstance(value, list | tuple | dict):
        return 4
    if depth >= MAX_DEPTH:
        raise Refused(f"it makes a value nested deeper than {MAX_DEPTH} levels")
    total = 2
    for item in value:
        total += weigh(item, limit - total, depth + 1) + 1
        if isinstance(value, dict):
            total += weigh(value[item], limit - total, depth + 1) + 1
        if total > limit:
            break
    return total


def to_json(context: RenderContext, value: Any) -> str:
    """Compact JSON text of a value."""
    plain = as_json(context, value)
    context.make(weigh(plain, MAX_OUTPUT_CHARS))
    try:
        return _encoder.encode(plain)
    except ValueError:
        raise Refused("a number that is not finite (NaN or infinity) cannot be written as JSON") from None


def as_text(context: RenderContext, value: Any) -> str:
    """How a value stands in text: texts as they are, nothing for null, all else as JSON writes it."""
    if isinstance(value, str):
        return value
    if value is None or type(value) is Undefined:  # the latter of an `if` without `else`; a missing name is stricter
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return to_json(context, value)


def as_json(context: RenderContext, value: Any, depth: int = 0) -> Any:
    """A value as plain JSON: tuples and lazy lists become lists; anything that is no JSON value is refused."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if type(value) is Undefined:
        return None
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if depth >= MAX_DEPTH:
        raise Refused(f"it makes a value nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        context.work(ITEM_WORK * len(value))
        plain = {}
        for name, item in value.items():
            if not isinstance(name, str):
                raise Refused("the names in an object must be text")
            plain[name] = as_json(context, item, depth + 1)
        return plain
    if isinstance(value, list | tuple | range):
        context.work(ITEM_WORK * len(value))
        return [as_json(context, item, depth + 1) for item in value]
    if isinstance(value, Iterator):
        return [as_json(context, item, depth + 1) for item in context.steps(value)]
    raise Refused("it results in something that is not a value; call the method, or name a column")
