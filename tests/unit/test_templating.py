"""What templates render to, which columns they need, and what their errors say."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.templating import ColumnUse, TemplateError, compile_value, template_problems

JOB = {"name": "triage", "namespace": "support", "runId": "7"}


def context(row: dict[str, Any]) -> dict[str, Any]:
    return {"row": row, "key": ["a", 1], "seq": 3, "job": JOB}


def render(value: Any, *, text: bool = False, **row: Any) -> Any:
    return compile_value(value, path="body", text=text).render(context(row))


def failure(value: Any, **row: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        render(value, **row)
    return str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(cell=JSON)
def test_one_expression_keeps_the_cell_as_it_is(cell: Any) -> None:
    for template in ("{{ row.x }}", "{{row['x']}}", '{{ row["x"] }}', "{{ row.x if true else 1 }}"):
        rendered = render(template, x=cell)
        assert rendered == cell
        assert type(rendered) is type(cell)


@given(cell=st.text())
def test_text_is_never_evaluated(cell: str) -> None:
    assert render("<{{ row.x }}>", x=cell) == f"<{cell}>"
    assert render("{{ row.x }}", x=cell) == cell


@pytest.mark.parametrize("cell", ["42", "{{ 7*7 }}", "{% for %}", "true", "[1]", "<b>&amp;</b>"])
def test_cells_that_look_like_something_else_stay_text(cell: str) -> None:
    assert render({"one": "{{ row.x }}", "text": "a {{ row.x }}"}, x=cell) == {"one": cell, "text": f"a {cell}"}


@pytest.mark.parametrize(
    ("cell", "written"),
    [(None, ""), (True, "true"), (1.5, "1.5"), (42, "42"), ([1, "ä", None], '[1,"ä",null]'), ({"a": []}, '{"a":[]}')],
)
def test_values_stand_in_text_as_json_writes_them(cell: Any, written: str) -> None:
    assert render("v={{ row.x }}", x=cell) == f"v={written}"
    assert render("{{ row.x }}", text=True, x=cell) == written
    assert render("{{ row.x ~ '' }}", x=cell) == written


def test_constants_in_text_are_written_the_same_way() -> None:
    assert render("{{ none }}|{{ true }}|{{ [1, none] }}|{{ 2 }}") == "|true|[1,null]|2"


@pytest.mark.parametrize(
    ("template", "value"),
    [("{{ 42 }}", 42), ("{{ none }}", None), ("{{ 'a' }}", "a"), ("{{ (1, row.x) }}", [1, "a"]), ("{{ seq }}", 3)],
)
def test_one_expression_that_is_no_column(template: str, value: Any) -> None:
    assert render(template, x="a") == value


def test_structure_order_and_names_are_kept() -> None:
    value = {"z": 1, "{{ row.x }}": "{{ row.x }}", "a": [None, True, {"deep": ["{{ key }}"]}], "job": "{{ job.runId }}"}
    rendered = render(value, x=5)
    assert rendered == {"z": 1, "{{ row.x }}": 5, "a": [None, True, {"deep": [["a", 1]]}], "job": "7"}
    assert list(rendered) == list(value)


def test_a_value_without_markup_is_constant_and_handed_out_as_it_is() -> None:
    value = {"a": ["{", "}}", "{ {x} }"]}
    template = compile_value(value, path="body")
    assert template.constant
    assert template.render({}) is value


def test_line_breaks_and_blanks_of_a_text_are_kept() -> None:
    assert render(" {{ row.x }} ", x=1) == " 1 "
    assert render("{{ row.x }}\n", x=1) == "1\n"


def test_columns_come_before_everything() -> None:
    names = ["items", "keys", "get", "copy", "upper", "_id", "two words", "class"]
    for name in names:
        assert render(f"{{{{ row['{name}'] }}}}", **dict.fromkeys(names, 8)) == 8
    assert render("{{ row.items }}/{{ row._id }}", items=1, _id=2) == "1/2"
    assert render("{{ row.meta.items }}", meta={"items": 9}) == 9


def test_what_one_leaf_sets_is_nothing_to_the_next() -> None:
    value = ["{% set a = 1 %}{{ a }}", "{% if a is defined %}leak{% endif %}{% set a = 2 %}"]
    assert render(value) == ["1", ""]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ row.s.strip().split(',') }}", ["a", "b"]),
        ("{{ row.s | trim | upper }}", "A,B"),
        ("{{ row.n | int + 1 }}", 8),
        ("{{ row.n | float }}", 7.0),
        ("{{ row.bad | int(default=0) }}", 0),
        ("{{ row.absent | default('d') }}", "d"),
        ("{{ row.absent | d(none) }}", None),
        ("{{ row.list | map('upper') | join('-') }}", "X-Y"),
        ("{{ row.objects | map(attribute='v') | sum }}", 3),
        ("{{ row.objects | selectattr('v', 'gt', 1) | list }}", [{"v": 2}]),
        ("{{ row.list | tojson }}", '["x","y"]'),
        ("{{ row.json | fromjson }}", {"a": [1]}),
        ("{{ 'ä/ b' | quote }}", "%C3%A4%2F%20b"),
        ("{{ 'ä/ b' | urlencode }}", "%C3%A4/%20b"),
        ("{{ {'q': 'a b'} | urlencode }}", "q=a+b"),
        ("{{ 'hé' | b64encode }}", "aMOp"),
        ("{{ 'a,b' | split(',') | last }}", "b"),
        ("{{ 'banana' | replace('an', '') }}", "ba"),
        ("{{ 'banana'.replace('a', 'o', 1) }}", "bonana"),
        ("{{ 2.567 | round(1) }}", 2.6),
        ("{{ [3, 1, 2] | sort | reverse | list }}", [3, 2, 1]),
        ("{{ [1, 1, 2] | unique }}", [1, 2]),
        ("{{ {'b': 1, 'a': 2} | dictsort }}", [["a", 2], ["b", 1]]),
        ("{{ {'b': 1} | items }}", [["b", 1]]),
        ("{{ row | length }}", 6),
        ("{{ 'x' in row.list }}", True),
        ("{% for v in row.list %}{{ loop.index }}{{ v }}{{ ',' if not loop.last }}{% endfor %}", "1x,2y"),
        ("{{ 1 if row.s == 'b' }}", None),
        ("{% for v in row.list %}{{ loop.index }}{{ v }}{% if not loop.last %},{% endif %}{% endfor %}", "1x,2y"),
    ],
)
def test_filters_and_methods(template: str, value: Any) -> None:
    row = {
        "s": " a,b ",
        "n": "7",
        "bad": "n/a",
        "list": ["x", "y"],
        "objects": [{"v": 1}, {"v": 2}],
        "json": '{"a":[1]}',
    }
    assert render(template, **row) == value


def test_a_missing_column_is_named_with_its_leaf_and_a_near_one() -> None:
    assert failure({"a": [{"b": "{{ row.subjct }}"}]}, subject="secret") == (
        'body.a[0].b: the row has no column "subjct"; did you mean "subject"?'
    )
    assert failure("x {{ row['two wrds'] }}", **{"two words": 1}).startswith('body: the row has no column "two wrds"')
    for template in ("{{ row.a ~ 1 }}", "{{ row.a.b }}", "{{ row.a | upper }}", "{{ [row.a] }}", "{{ 1 + row.a }}"):
        assert 'no column "a"' in failure(template, b=1)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ row.cell > 3 }}", "> does not fit a text and a number"),
        ("{{ row.cell | int }}", "not a whole number"),
        ("{{ row.cell | float }}", "not a number"),
        ("{{ row.cell | fromjson }}", "not JSON"),
        ("{{ row.cell + 1 }}", "join them as text with ~"),
        ("{{ row.map[row.cell] }}", "no such item in an object"),
        ("{{ row[row.cell] }}", "the row has no column of the name that is computed here"),
        ("{{ row.cell.index('q') }}", "does not fit"),
        ("{{ row.map | sum }}", "list of numbers"),
        ("{% for x in seq %}{% endfor %}", "a loop needs a list, not a number"),
        ("{{ 1 / 0 }}", "divides by zero"),
        ("{{ 1e308 * 10 | tojson }}", ""),
    ],
)
def test_an_error_while_rendering_never_tells_a_cell(template: str, told: str) -> None:
    message = failure(template, cell="s3cret", map={"k": "s3cret"})
    assert told in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ row.x", "does not compile"),
        ("{{ row.x }", "does not compile"),
        ("{% for x in %}", "does not compile"),
        ("{% nope %}", "unknown tag"),
        ("{{ row.x | uper }}", 'no filter "uper"; did you mean "upper"?'),
        ("{{ row.x is defned }}", 'no test "defned"; did you mean "defined"?'),
        ("{{ subject }}", 'no name "subject": the names are row, key, seq, job; a column is written row.subject'),
        ("{{ Row.x }}", 'did you mean "row"?'),
        ("{{ job.runid }}", 'did you mean "runId"?'),
        ("{{ row.x | replace('a') }}", "the filter replace is given other arguments"),
        ("{{ row.x | upper(1) }}", "the filter upper is given other arguments"),
        ("{{ row.items() }}", "row.items is a column and cannot be called"),
        ("{{ row.x.formt() }}", 'no method "formt"'),
        ("{% set row = 1 %}", "cannot be set"),
        ("{% include 'x' %}", "include cannot be used"),
        ("{% macro m() %}{% endmacro %}", "macro cannot be used"),
        ("{% set x %}a{% endset %}", "set ... endset cannot be used"),
        ("{{ self }}", 'no name "self"'),
        ("{{ loop.index }}", 'no name "loop"'),
    ],
)
def test_what_cannot_work_is_found_when_compiling(template: str, told: str) -> None:
    with pytest.raises(TemplateError, match=r"^spec\.x: ") as caught:
        compile_value(template, path="spec.x")
    assert told.lower() in caught.value.message.lower()


def test_filters_are_not_asked_for_their_signatures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes milliseconds each time, in which a process that checks manifests does nothing else."""
    compile_value("{{ row.x | upper }}", path="p")
    asked: list[object] = []

    def signature(function: Any) -> inspect.Signature:
        asked.append(function)
        return inspect.Signature()

    monkeypatch.setattr("rowmill.templating.filters.inspect.signature", signature)
    problems, _ = template_problems(["{{ row.y | replace('a', 'b') }}", "{{ row.y | upper(1, 2, 3) }}"], path="p")
    assert [problem.path for problem in problems] == ["p[1]"]
    assert asked == []


def test_all_problems_of_a_value_are_told_at_once() -> None:
    problems, uses = template_problems(
        {"a": "{{ x }}", "b": ["{{ row.ok }}", "{{"], "c d": "{{ row.y | z }}"}, path="p"
    )
    assert [p.path for p in problems] == ["p.a", "p.b[1]", 'p["c d"]']
    assert uses == [ColumnUse("p.b[0]", "ok")]


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("{{ row.a }} {{ row['b c'] }} {{ row.a }}", ["a", "b c"]),
        ("{{ row.a | default('') }}", []),
        ("{{ row.a | d }}{{ row.b }}", ["b"]),
        ("{% if row.a is defined %}{{ row.a }}{% endif %}", []),
        ("{{ row.a if 'a' in row else row.b }}", ["b"]),
        ("{{ row.meta.x | default(1) }}", ["meta"]),
        ("{% for i in row.list %}{{ i }}{{ row.z }}{% endfor %}", ["list", "z"]),
        ("{{ row[key] }}{{ row }}", []),
    ],
)
def test_columns_that_a_leaf_cannot_do_without(template: str, columns: list[str]) -> None:
    assert [use.column for use in compile_value(template, path="p").columns] == columns
