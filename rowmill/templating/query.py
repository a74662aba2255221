"""JMESPath into an answer: compiled once, bounded, and silent about what stands in the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from jmespath import exceptions
from jmespath.functions import Functions
from jmespath.parser import Parser
from jmespath.visitor import TreeInterpreter

from rowmill.templating.errors import TemplateError, did_you_mean, shown

MAX_QUERY_CHARS: Final = 4_096
"""Characters of an expression."""

MAX_QUERY_WORK: Final = 2_000_000
"""Nodes visited, items and characters made, in one search."""


class _TooMuch(Exception):
    """A search that grows past its bound."""


class Query:
    """A compiled expression. `search` may be called from any thread, any number of times."""

    __slots__ = ("_search", "expression", "path")

    def __init__(self, *, path: str, expression: str, search: Callable[[Any], Any]) -> None:
        self.path = path
        self.expression = expression
        self._search = search

    def search(self, value: Any) -> Any:
        """What the expression finds in a JSON value; None where it finds nothing. Raises TemplateError."""
        try:
            return self._search(value)
        except exceptions.JMESPathTypeError as exc:
            expected = " or ".join(sorted(map(str, exc.expected_types)))
            message = f"the function {exc.function_name}() got {exc.actual_type} and needs {expected}"
        except _TooMuch:
            message = f"the expression works through more than {MAX_QUERY_WORK:,} items; make it do less"
        except RecursionError:
            message = "the answer or the expression is nested too deeply"
        except Exception as exc:  # the library's own messages may quote the answer
            message = f"the expression does not fit the answer ({type(exc).__name__})"
        raise TemplateError(self.path, f"{message}; the expression is {shown(self.expression)}")


def compile_query(expression: str, *, path: str) -> Query:
    """Compile a JMESPath expression; raises TemplateError, which says where it goes wrong."""
    if len(expression) > MAX_QUERY_CHARS:
        raise TemplateError(path, f"the JMESPath expression is longer than {MAX_QUERY_CHARS:,} characters")
    try:
        tree = Parser().parse(expression).parsed
    except exceptions.EmptyExpressionError:
        raise TemplateError(path, "the JMESPath expression is empty; leave it out for the whole answer") from None
    except exceptions.LexerError as exc:
        raise TemplateError(
            path,
            f"not a JMESPath expression: {_lexical(str(exc.message))} at character {exc.lexer_position + 1}{_HINT}",
        ) from None
    except exceptions.IncompleteExpressionError:
        raise TemplateError(path, f"not a JMESPath expression: it ends too early{_HINT}") from None
    except exceptions.ParseError as exc:
        if exc.token_type == "EOF":
            raise TemplateError(path, f"not a JMESPath expression: it ends too early{_HINT}") from None
        raise TemplateError(
            path,
            f"not a JMESPath expression: {shown(str(exc.token_value))} is out of place at character "
            f"{exc.lex_position + 1}{_HINT}",
        ) from None
    except (exceptions.JMESPathError, RecursionError, ValueError):
        raise TemplateError(path, f"not a JMESPath expression{_HINT}") from None
    _check_functions(tree, path)
    fields = _field_chain(tree)
    if fields is not None:
        return Query(path=path, expression=expression, search=_walk_fields(fields))
    return Query(path=path, expression=expression, search=lambda value: _Interpreter().visit(tree, value))


_HINT: Final = "; a field of the answer is written name or outer.inner or list[0].name"


def _lexical(message: str) -> str:
    return message.splitlines()[0].rstrip(".:") if message else "an unknown character"


class _Interpreter(TreeInterpreter):
    """The library's interpreter, which counts what it visits and makes."""

    def __init__(self) -> None:
        super().__init__()
        self._known = Functions()
        self._left = MAX_QUERY_WORK

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise _TooMuch

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._spend(1)
        result = super().visit(node, *args, **kwargs)
        if isinstance(result, str | list) and node["type"] in _MAKERS:
            self._spend(len(result))
        return result

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        if node["value"] == "join":
            # The one function whose result is larger than all it is given: measured before it is made.
            glue, items = (self.visit(child, value) for child in node["children"])
            if isinstance(glue, str) and isinstance(items, list):
                self._spend(sum(len(i) if isinstance(i, str) else 1 for i in items) + len(glue) * len(items))
            return self._known.call_function("join", [glue, items])
        return super().visit_function_expression(node, value)


_MAKERS: Final = frozenset({"flatten", "function_expression", "slice", "multi_select_list"})


def _children(node: Any) -> list[Any]:
    return [child for child in node.get("children", ()) if isinstance(child, dict)]


def _check_functions(tree: Any, path: str) -> None:
    """An unknown function, or a wrong number of arguments, is found now and not at the first row."""
    table = Functions().FUNCTION_TABLE
    pending = [tree]
    while pending:
        node = pending.pop()
        pending += _children(node)
        if node["type"] != "function_expression":
            continue
        name = node["value"]
        if name not in table:
            raise TemplateError(path, f"JMESPath has no function {shown(name)}{did_you_mean(name, table)}")
        signature = table[name]["signature"]
        given = len(node["children"])
        variadic = bool(signature) and signature[-1].get("variadic", False)
        if given < len(signature) or (given > len(signature) and not variadic):
            raise TemplateError(path, f"the function {name}() takes {len(signature)} arguments, not {given}")


def _field_chain(node: Any) -> tuple[str, ...] | None:
    """`("a", "b")` of the expression `a.b`, the most common kind; None for any other."""
    if node["type"] == "field":
        return (node["value"],)
    if node["type"] != "subexpression":
        return None
    chains = [_field_chain(child) for child in node["children"]]
    return None if None in chains else tuple(name for chain in chains if chain is not None for name in chain)


def _walk_fields(fields: tuple[str, ...]) -> Callable[[Any], Any]:
    def search(value: Any) -> Any:
        for name in fields:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    return search
