"""Templates in a JSON value, compiled once and rendered for every row.

A leaf that is exactly one expression keeps the type of what it names; any other leaf with markup renders to text. A
rendered text is a value, never looked at again: a cell "42" stays the text "42", a cell "{{ 7*7 }}" stays that text.
Leaves without markup, numbers and names of fields are constants.

    compiling: parse → check (`check`) → compile     → TemplateError, found by `rowmill validate`
    rendering: one context for all leaves, each leaf → TemplateError, which names leaf and column: that row is bad

The invariant: rendering reads nothing but the names given, changes nothing, and ends within `bounds`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from jinja2 import Template as JinjaTemplate
from jinja2 import UndefinedError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError

from rowmill.errors import Problem
from rowmill.templating.bounds import (
    MAX_DEPTH,
    MAX_OUTPUT_CHARS,
    MAX_TEMPLATE_CHARS,
    RenderContext,
    as_json,
    as_text,
    weigh,
)
from rowmill.templating.check import check, needed_columns
from rowmill.templating.errors import Refused, TemplateError, did_you_mean, shown
from rowmill.templating.sandbox import MissingName, Sandbox, kind_of

_MARKUP: Final = re.compile(r"\{[{%#]")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

_NOT_ORDERED: Final = re.compile(r"'([<>]=?)' not supported between instances of '(\w+)' and '(\w+)'")
_KINDS: Final = {
    "str": "a text",
    "int": "a number",
    "float": "a number",
    "NoneType": "null",
    "dict": "an object",
    "list": "a list",
}

_Render = Callable[[RenderContext], Any]


class ColumnUse(NamedTuple):
    """A column that a leaf cannot be rendered without."""

    path: str
    column: str


class Template:
    """A compiled JSON value. `render` may be called from any thread, any number of times.

    `constant` tells that no leaf has markup. `columns` holds the columns of `row` that are named in so many words
    and not guarded by `is defined` or `default`.
    """

    __slots__ = ("_cpu_clock", "_environment", "_render", "_value", "columns", "constant", "path")

    def __init__(
        self,
        *,
        path: str,
        value: Any,
        render: _Render | None,
        columns: tuple[ColumnUse, ...],
        environment: Sandbox,
        cpu_clock: Callable[[], float],
    ) -> None:
        self.path = path
        self.columns = columns
        self.constant = render is None
        self._value = value
        self._render = render
        self._environment = environment
        self._cpu_clock = cpu_clock

    def render(self, context: Mapping[str, Any]) -> Any:
        """The value for one row. `context` holds `row`, `key`, `seq` and `job`.

        Constant parts are shared between results: treat a result as read-only. Raises TemplateError.
        """
        if self._render is None:
            return self._value
        environment = self._environment
        names = {**environment.globals, **context}
        return self._render(RenderContext(environment, environment.shared_eval_ctx, names, self._cpu_clock))


def compile_value(
    value: Any, *, path: str, text: bool = False, cpu_clock: Callable[[], float] = time.thread_time
) -> Template:
    """Compile every template in a JSON value; raises TemplateError at the first that is wrong.

    `path` names the value in the manifest. With `text` even a leaf that is exactly one expression renders to text,
    as URLs and headers need it. `cpu_clock` gives this thread's processor seconds.
    """
    compiler = _Compiler(text=text)
    render = compiler.compile(value, path)
    if compiler.problems:
        raise TemplateError(*compiler.problems[0])
    return Template(
        path=path,
        value=value,
        render=render,
        columns=tuple(compiler.columns),
        environment=compiler.environment,
        cpu_clock=cpu_clock,
    )


def template_problems(value: Any, *, path: str) -> tuple[list[Problem], list[ColumnUse]]:
    """Everything wrong with the templates in a value, and the columns that those which are right need."""
    compiler = _Compiler(text=False)
    compiler.compile(value, path)
    return compiler.problems, compiler.columns


def join_path(path: str, part: str | int) -> str:
    """`path` and what lies below it: `body.text`, `headers[0]`, `body["two words"]`."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    if _PLAIN_NAME.fullmatch(part):
        return f"{path}.{part}" if path else part
    return f"{path}[{shown(part)}]"


class _Compiler:
    """One pass over a value; collects problems instead of stopping at the first."""

    def __init__(self, *, text: bool) -> None:
        self.environment = Sandbox()
        self.problems: list[Problem] = []
        self.columns: list[ColumnUse] = []
        self._text = text

    def compile(self, value: Any, path: str, depth: int = 0) -> _Render | None:
        """What renders `value`, or None where it is constant."""
        if depth > MAX_DEPTH:
            self.problems.append(Problem(path, f"is nested deeper than {MAX_DEPTH} levels; make it flatter"))
            return None
        if isinstance(value, str):
            return self._leaf(value, path)
        if isinstance(value, Mapping):
            parts = [(k, v, self.compile(v, join_path(path, str(k)), depth + 1)) for k, v in value.items()]
            if all(render is None for _, _, render in parts):
                return None
            constants = {k: v for k, v, render in parts}  # keeps the order of the manifest
            dynamic = [(k, render) for k, _, render in parts if render is not None]
            return lambda context: {**constants, **{k: render(context) for k, render in dynamic}}
        if isinstance(value, list | tuple):
            renders = [self.compile(v, join_path(path, i), depth + 1) for i, v in enumerate(value)]
            if all(render is None for render in renders):
                return None
            items = list(zip(value, renders, strict=True))
            return lambda context: [v if render is None else render(context) for v, render in items]
        return None

    def _leaf(self, source: str, path: str) -> _Render | None:
        if not _MARKUP.search(source):
            return None
        try:
            return self._compile_leaf(source, path)
        except TemplateSyntaxError as exc:
            where = f" (line {exc.lineno} of the template)" if "\n" in source.rstrip("\n") else ""
            reason = (exc.message or "it is not closed").rstrip(".")
            self.problems.append(
                Problem(
                    path,
                    f"the template does not compile: {reason}{where}; an expression is written {{{{ row.column }}}}",
                )
            )
        except Refused as exc:
            self.problems.append(Problem(path, f"the template cannot be used: {exc}"))
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError):
            self.problems.append(
                Problem(path, "the template cannot be used: it is too deep or too large; make it simpler")
            )
        return None

    def _compile_leaf(self, source: str, path: str) -> _Render:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise Refused(f"it is longer than {MAX_TEMPLATE_CHARS:,} characters")
        tree = self.environment.parse(source)
        columns = needed_columns(tree)
        tree = check(self.environment, tree)
        self.columns += [ColumnUse(path, column) for column in columns]
        expression = None if self._text else _sole_expression(tree)
        if expression is not None and (column := _plain_column(expression)) is not None:
            return _column_render(column, path)
        if expression is not None and (constant := _constant(expression)) is not None:
            return lambda context: constant[0]
        code = self.environment.compile(tree)
        root = JinjaTemplate.from_code(self.environment, code, {}).root_render_func
        if expression is None:
            return _text_render(root, path)
        return _native_render(root, path)


def _sole_expression(tree: nodes.Template) -> nodes.Expr | None:
    match tree.body:
        case [nodes.Output(nodes=[expression])] if not isinstance(expression, nodes.TemplateData):
            return expression
    return None


def _plain_column(expression: nodes.Expr) -> str | None:
    match expression:
        case nodes.Getattr(node=nodes.Name(name="row"), attr=attr):
            return attr
    return None


def _constant(expression: nodes.Expr) -> tuple[Any] | None:
    """`{{ 42 }}` is a number, which Jinja would fold into text."""
    match expression:
        case nodes.Const(value=value) if value is None or isinstance(value, str | int | float):
            return (value,)
    return None


def _column_render(column: str, path: str) -> _Render:
    """`{{ row.x }}`, the most common leaf, without the detour over Jinja."""

    def render(context: RenderContext) -> Any:
        row = context.parent["row"]
        try:
            value = row[column]
            context.emit(len(value) if isinstance(value, str) else weigh(value, MAX_OUTPUT_CHARS))
        except KeyError:
            raise TemplateError(path, _missing_column(row, column)) from None
        except Refused as exc:
            raise TemplateError(path, str(exc)) from None
        return value

    return render


def _native_render(root: Callable[[Any], Iterator[Any]], path: str) -> _Render:
    def render(context: RenderContext) -> Any:
        try:
            (value,) = root(context)
            plain = as_json(context, value)
            context.emit(weigh(plain, MAX_OUTPUT_CHARS))
        except Exception as exc:
            raise TemplateError(path, _told(exc, context)) from None
        return plain

    return render


def _text_render(root: Callable[[Any], Iterator[Any]], path: str) -> _Render:
    def render(context: RenderContext) -> str:
        try:
            parts = []
            for part in root(context):
                text = part if type(part) is str else as_text(context, part)
                context.emit(len(text))
                parts.append(text)
        except Exception as exc:
            raise TemplateError(path, _told(exc, context)) from None
        finally:
            context.vars.clear()  # what one leaf has set is nothing to the next
        return "".join(parts)

    return render


def _told(exc: Exception, context: RenderContext) -> str:
    """A sentence for whatever a render raised. Names columns; never repeats a value."""
    match exc:
        case Refused():
            return str(exc)
        case MissingName(holder=holder, name=name):
            row = context.parent["row"]
            if holder is row:
                if name is None:
                    return "the row has no column of the name that is computed here"
                return _missing_column(row, name)
            if name is None:
                return f"there is no such item in {kind_of(holder)}; guard it with is defined, or give a default"
            return f"{kind_of(holder)} has no {shown(name)}; guard it with is defined, or give a default"
        case UndefinedError():
            return exc.message or "a value is missing"
        case SecurityError():
            return "it reaches for Python internals, which no template may; name columns only"
        case TypeError() if (found := _NOT_ORDERED.match(str(exc))) is not None:
            kinds = (_KINDS.get(kind, "another kind of value") for kind in found.group(2, 3))
            return f"{found[1]} does not fit {' and '.join(kinds)}; make both numbers by the filter int or float"
        case ZeroDivisionError():
            return "it divides by zero; guard the division with if"
        case OverflowError():
            return "it makes a number that is too large"
        case RecursionError() | MemoryError():
            return "it needs more memory than a row may; send less of the row"
        case _:
            # Messages of Python's own may quote a cell.
            return f"a value does not fit what is done with it ({type(exc).__name__}); check the types of the columns"


def _missing_column(row: Mapping[str, Any], column: str) -> str:
    columns = [name for name in row if isinstance(name, str)][:1000]
    meant = did_you_mean(column, columns) or '; correct the name, or add | default("") where it may be absent'
    return f"the row has no column {shown(column)}{meant}"
