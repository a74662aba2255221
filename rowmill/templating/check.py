"""What a template may say, looked at before it is compiled.

The language is what is listed here, not what is left after taking bad things out: an expression on the given names,
`if`, `for` and `set`, with the filters, tests and methods of the sandbox. The same walk collects the columns that
the template cannot do without, and puts the counters of `bounds` where Jinja would loop or join unasked.
"""

from __future__ import annotations

import re
from typing import Final, cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from rowmill.templating.bounds import MAX_DEPTH
from rowmill.templating.errors import Refused, did_you_mean, shown
from rowmill.templating.filters import misfit
from rowmill.templating.sandbox import CONCAT_FILTER, LOOP_ATTRIBUTES, STEPS_FILTER, TEXT_METHODS, Sandbox

NAMES: Final = ("row", "key", "seq", "job")
"""What a template is given."""

JOB_NAMES: Final = ("name", "namespace", "runId")
"""What `job` holds."""

_ALLOWED: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign),
    *(nodes.Name, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Call, nodes.Filter, nodes.Test),
    *(nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Concat),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow, nodes.Neg, nodes.Pos),
)
_INTERNAL: Final = re.compile(
    r"__\w+__|(?:gi|cr|ag|tb|f|co|func|im)_(?:frame|code|globals|func|self|back|builtins)|mro"
)


def check(environment: Sandbox, tree: nodes.Template) -> nodes.Template:
    """The tree with the counters put in. Raises Refused on anything that is not in the language."""
    _walk(environment, tree, 0)
    known = {*NAMES, *environment.globals}
    known |= {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    if tree.find(nodes.For) is not None:
        known.add("loop")
    for name in (node.name for node in tree.find_all(nodes.Name)):
        if name in known:
            continue
        meant = did_you_mean(name, NAMES) or f"; a column is written row.{name}"
        raise Refused(f"there is no name {shown(name)}: the names are {', '.join(NAMES)}{meant}")
    return _Rewriter().visit(tree)  # type: ignore[no-any-return]


def needed_columns(tree: nodes.Template) -> tuple[str, ...]:
    """Columns that the template names and does not guard by `is defined` or `default`, in order, each once."""
    guarded: set[str] = set()
    for guard in tree.find_all((nodes.Test, nodes.Filter)):
        if guard.name in ("defined", "undefined", "default", "d") and guard.node is not None:
            guarded.add(_column(guard.node) or "")
    for test in tree.find_all(nodes.Compare):
        # `'x' in row` is a guard as well.
        if isinstance(test.expr, nodes.Const) and any(
            isinstance(o.expr, nodes.Name) and o.expr.name == "row" for o in test.ops
        ):
            guarded.add(str(test.expr.value))
    named = (_column(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem)))
    return tuple(dict.fromkeys(name for name in named if name is not None and name not in guarded))


def _column(node: nodes.Node) -> str | None:
    """`x` of `row.x` or `row["x"]`."""
    if not isinstance(node, nodes.Getattr | nodes.Getitem):
        return None
    if not (isinstance(node.node, nodes.Name) and node.node.name == "row"):
        return None
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) else None


def _walk(environment: Sandbox, node: nodes.Node, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Refused(f"it is nested deeper than {MAX_DEPTH} levels; make it simpler")
    if not isinstance(node, _ALLOWED):
        raise Refused(f"{_spoken(node)} cannot be used in a template here; there are expressions, if, for and set")
    match node:
        case nodes.Name(ctx="store", name=name) if name in (*NAMES, "range", "loop"):
            raise Refused(f"the name {shown(name)} is given and cannot be set; take another name")
        case nodes.Assign(target=target) if not isinstance(target, nodes.Name | nodes.Tuple):
            raise Refused("set takes a plain name")
        case nodes.For(recursive=True):
            raise Refused("a loop cannot be recursive here")
        case nodes.Getattr(node=base, attr=attr):
            _check_attribute(base, attr)
        case nodes.Getitem(node=base, arg=nodes.Const(value=str() as attr)):
            _check_attribute(base, attr)
        case nodes.Call():
            _check_call(node)
        case nodes.Filter():
            _check_filter(environment, node)
        case nodes.Test(name=name) if name not in environment.tests:
            raise Refused(f"there is no test {shown(name)}{did_you_mean(name, environment.tests)}")
        case _:
            pass
    for child in node.iter_child_nodes():
        _walk(environment, child, depth + 1)


def _check_attribute(base: nodes.Node, attr: str) -> None:
    on_row = isinstance(base, nodes.Name) and base.name == "row"
    if _INTERNAL.fullmatch(attr) and not (on_row and not attr.startswith("__")):
        raise Refused(f"{shown(attr)} reaches for Python internals, which no template may; name columns only")
    if not isinstance(base, nodes.Name):
        return
    if base.name == "job" and attr not in JOB_NAMES:
        raise Refused(f"job has no {shown(attr)}: it has {', '.join(JOB_NAMES)}{did_you_mean(attr, JOB_NAMES)}")
    if base.name == "loop" and attr not in LOOP_ATTRIBUTES:
        raise Refused(f"loop has no {shown(attr)}{did_you_mean(attr, LOOP_ATTRIBUTES)}")


def _check_filter(environment: Sandbox, node: nodes.Filter) -> None:
    name = node.name
    if name not in environment.filters or name in (STEPS_FILTER, CONCAT_FILTER):
        known = [f for f in environment.filters if not f.startswith("_")]
        raise Refused(f"there is no filter {shown(name)}{did_you_mean(name, known)}")
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise Refused("* and ** cannot be used in a filter here; write the arguments out")
    keywords = [str(keyword.key) for keyword in cast(list[nodes.Keyword], node.kwargs)]
    reason = misfit(environment.filters[name], len(node.args), keywords)
    if reason is not None:
        raise Refused(f"the filter {name} is given other arguments than it takes: {reason}")


def _check_call(node: nodes.Call) -> None:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise Refused("* and ** cannot be used in a call here; write the arguments out")
    match node.node:
        case nodes.Name(name="range"):
            return
        case (
            nodes.Getattr(node=nodes.Name(name="row"), attr=attr)
            | nodes.Getitem(node=nodes.Name(name="row"), arg=nodes.Const(value=str() as attr))
        ):
            raise Refused(f"row.{attr} is a column and cannot be called; for all pairs of the row write row | items")
        case nodes.Getattr(attr=attr) if attr in TEXT_METHODS:
            return
        case nodes.Getattr(attr=attr):
            meant = did_you_mean(attr, TEXT_METHODS)
            raise Refused(f"there is no method {shown(attr)}: only methods of text can be called{meant}")
        case _:
            raise Refused("only methods of text and range() can be called")


def _spoken(node: nodes.Node) -> str:
    names = {
        "AssignBlock": "set ... endset",
        "FilterBlock": "filter ... endfilter",
        "CallBlock": "call",
        "FromImport": "import",
    }
    kind = type(node).__name__
    return names.get(kind, kind.lower())


class _Rewriter(NodeTransformer):
    """Counts loops and joins; turns `row["x"]` into `row.x`, which is looked up the same way and named in errors."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, STEPS_FILTER)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), CONCAT_FILTER)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return nodes.Getattr(node.node, node.arg.value, "load", lineno=node.lineno)
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
