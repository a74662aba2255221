"""Templates in the manifest (Jinja2, sandboxed and bounded) and queries into answers (JMESPath), compiled once."""

from rowmill.templating.errors import TemplateError
from rowmill.templating.query import Query, compile_query
from rowmill.templating.values import ColumnUse, Template, compile_value, join_path, template_problems

__all__ = [
    "ColumnUse",
    "Query",
    "Template",
    "TemplateError",
    "compile_query",
    "compile_value",
    "join_path",
    "template_problems",
]
