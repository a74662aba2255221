"""Jinja's sandbox, narrowed: columns before everything, a short list of methods, and a bound on whatever grows.

No attribute of a Python object can be reached from a template: `a.b` looks a key up, or names one of the text
methods below. So `row.items` is the column `items`, and `''.__class__` is nothing at all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, cast

from jinja2 import StrictUndefined, Undefined, nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateRuntimeError, UndefinedError
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rowmill.templating.bounds import ITEM_WORK, MAX_INT_BITS, MAX_STEPS, RenderContext, cost
from rowmill.templating.errors import Refused
from rowmill.templating.filters import filter_table, join, replace, require

# fmt: off
TEXT_METHODS: Final = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower",
    "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper",
))
"""Methods of text that templates may call."""

LOOP_ATTRIBUTES: Final = frozenset((
    "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0",
))
"""What `loop` tells inside a `for`."""

TESTS: Final = frozenset((
    "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float", "ge", "greaterthan", "gt", "in",
    "integer", "iterable", "le", "lessthan", "lower", "lt", "mapping", "ne", "none", "number", "odd", "sequence",
    "string", "true", "undefined", "upper", "==", "!=", "<", "<=", ">", ">=",
))
"""Jinja's tests that templates may use."""
# fmt: on

STEPS_FILTER: Final = "_steps"
CONCAT_FILTER: Final = "_concat"


class MissingName(UndefinedError):
    """A name that `holder` does not have; `name` is None where it was computed, and so may come from a cell."""

    def __init__(self, holder: Any, name: str | None, message: str | None = None) -> None:
        super().__init__(message)
        self.holder = holder
        self.name = name


class TextMethod:
    """A method of a text, named but not yet called."""

    __slots__ = ("name", "text")

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name

    def __call__(self, context: RenderContext, *args: Any, **kwargs: Any) -> Any:
        require(*args, *kwargs.values())
        context.work(len(self.text))
        if self.name == "replace":
            return replace(context, self.text, *args, **kwargs)
        if self.name == "join":
            (items,) = args
            return join(context, items, self.text)
        result = getattr(self.text, self.name)(*args, **kwargs)
        context.work(cost(result))
        return result


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that every template is compiled in. Holds no state of a render."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    code_generator_class: type[CodeGenerator]

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, cache_size=0, optimized=False
        )
        self.code_generator_class = _ValueCodeGenerator
        self.filters = dict(filter_table())
        self.filters[STEPS_FILTER] = pass_context(lambda context, items: context.steps(_iterable(items)))
        self.filters[CONCAT_FILTER] = pass_context(lambda context, parts: join(context, parts))
        self.tests = {name: test for name, test in self.tests.items() if name in TESTS}
        self.globals = {"range": _range}
        self.shared_eval_ctx = EvalContext(self)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`: a key of an object, or a method of a text."""
        if isinstance(obj, Mapping):
            try:
                return obj[attribute]
            except KeyError:
                return self._missing(obj, attribute)
        if isinstance(obj, str):
            if attribute in TEXT_METHODS:
                return TextMethod(obj, attribute)
        elif isinstance(obj, LoopContext):
            if attribute in LOOP_ATTRIBUTES:
                return getattr(obj, attribute)
        else:
            require(obj)
        return self._missing(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`: a key of an object, or an index or slice of a text or list."""
        require(obj, argument)
        if isinstance(obj, Mapping):
            try:
                return obj[argument]
            except (KeyError, TypeError):
                return self._missing(obj, None)
        if isinstance(obj, str | list | tuple | range) and isinstance(argument, int | slice):
            try:
                return obj[argument]
            except (IndexError, TypeError, ValueError):
                return self._missing(obj, None)
        if isinstance(argument, str) and argument.startswith("__"):
            raise Refused("it reaches for Python internals, which no template may; name columns only")
        return self._missing(obj, None)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a text, or `range`; nothing else can be called."""
        kwargs.pop("_loop_vars", None)  # the compiler's own, inside loops
        kwargs.pop("_block_vars", None)
        require(__obj)
        context = cast(RenderContext, __context)
        if isinstance(__obj, TextMethod):
            return __obj(context, *args, **kwargs)
        if __obj is _range:
            require(*args)
            return _range(*args, **kwargs)
        raise Refused(
            "only methods of text and range() can be called; a column is a value, and an object's pairs are had "
            "by the filter items"
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on numbers, and `+` on two texts or two lists; bounded before it is done."""
        require(left, right)
        if isinstance(left, int | float) and isinstance(right, int | float):
            return _arithmetic(operator, left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            cast(RenderContext, context).make(len(left) + len(right))
            return left + right
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            cast(RenderContext, context).work(ITEM_WORK * (len(left) + len(right)))
            return left + right
        raise Refused(
            f"{operator} does not fit {kind_of(left)} and {kind_of(right)}; "
            + ("join them as text with ~" if operator == "+" else "it takes two numbers (see the filters int, float)")
        )

    def _missing(self, obj: Any, name: str | None) -> Undefined:
        # Jinja raises whatever this makes; so the message can be worded where row and leaf are known.
        exc = cast(type[TemplateRuntimeError], partial(MissingName, obj, name))
        return StrictUndefined(obj=obj, name=name, exc=exc)


class _ValueCodeGenerator(NativeCodeGenerator):
    """Yields values as they are, so that text is made in one place, within bounds."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return repr("".join("" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in group))

    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> Any:
        const = super()._output_child_to_const(node, frame, finalize)
        if isinstance(const, list | tuple | dict):
            raise nodes.Impossible  # written as JSON, by as_text
        return const


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def _arithmetic(op: str, left: float, right: float) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        bits = max(left.bit_length(), right.bit_length())
        if op == "*":
            bits = left.bit_length() + right.bit_length()
        elif op == "**":
            bits = left.bit_length() * max(abs(right), 1)
        if bits > MAX_INT_BITS:
            raise Refused(f"{op} makes a number of more than {MAX_INT_BITS:,} bits")
    result = _OPERATORS[op](left, right)
    if isinstance(result, complex):
        raise Refused("a root of a negative number is no JSON value")
    return result


def _range(*args: int) -> range:
    if not all(isinstance(a, int) and abs(a) <= 2**53 for a in args):
        raise Refused("range() takes whole numbers")
    numbers = range(*args)
    if len(numbers) > MAX_STEPS:
        raise Refused(f"range() goes over more than {MAX_STEPS:,} numbers; make it shorter")
    return numbers


def _iterable(value: Any) -> Iterable[Any]:
    require(value)
    if isinstance(value, Iterable):
        return value
    raise Refused(f"a loop needs a list, not {kind_of(value)}")


def kind_of(value: Any) -> str:
    """What a value is, in a newcomer's words; never the value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names: list[tuple[type | tuple[type, ...], str]] = [
        (str, "a text"),
        ((int, float), "a number"),
        (Mapping, "an object"),
        ((list, tuple, range), "a list"),
    ]
    return next((name for kinds, name in names if isinstance(value, kinds)), "something that is not a value")
