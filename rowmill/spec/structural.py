"""From the models to a structural schema: the JSON schema that Kubernetes takes for a custom resource.

pydantic's own JSON schema says "or null", refers to definitions and forbids unknown fields by name; Kubernetes takes
none of that. Here every model is written out where it stands, each field with what pydantic says of its type and bounds
and, beside it, what only Kubernetes knows:

* a default wherever the model has one. The API server writes defaults into the object, so the model must mean the
  same by an object with and without them: a model of defaults alone is `{}`, filled in below it by the same rule, and
  an optional part that is absent stays absent.
* how lists merge: by name where items have one, as a whole otherwise.
* free JSON is kept as it is (`x-kubernetes-preserve-unknown-fields`); everything else that is unknown is pruned.
* the rules between fields (`rules.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from rowmill.spec.base import Part, unique
from rowmill.spec.fields import fields_of, models_in
from rowmill.spec.rules import rules_of

Schema = dict[str, Any]

LIST_KEYS: Final[Mapping[str, str]] = {"Header": "name", "Condition": "type"}
"""Models that are known by a field of theirs in every list, and so merge by it."""

ATOMIC: Final = frozenset({"KeyReference"})
"""Models whose fields belong together: whoever sets one sets all."""

ITEMS: Final[Mapping[str, str]] = {
    "key": "A column's name.",
    "columns": "A column's name.",
    "rows": "A row: column to cell.",
    "events": "What is told.",
    "include": "An outcome.",
    "accept": "An ending.",
    "successCodes": "A status.",
    "outputNodes": "A node's id.",
    "tolerations": "A toleration, as in a pod.",
    "nodeSelector": "A label's value.",
    "loweredBy": "A job, as namespace/name.",
    "lowers": "A job, as namespace/name.",
}
"""What one item of a list (or value of a map) is, where no model says it."""

_ORDERED: Final = frozenset({"key"})
"""Lists of unique texts in which the order counts."""

_SENTENCE: Final = re.compile(r"(?<=\.) (?=[A-Z])")
_MAX_INT64: Final = 2**63 - 1
_KEPT: Final = (
    *("type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "x-kubernetes-preserve-unknown-fields"),
)


def structural_schema(model: type[Part], *, rules: bool = True, defaults: bool = True) -> Schema:
    """The structural schema of a model. Without `rules` it says nothing that Kubernetes before 1.23 does not know."""
    definitions = model.model_json_schema(by_alias=True, mode="validation")
    return _Builder(definitions, root=model, rules=rules, defaults=defaults).model(model)


class _Builder:
    """Walks models and pydantic's schema of them side by side."""

    def __init__(self, whole: Schema, *, root: type[Part], rules: bool, defaults: bool) -> None:
        self._whole = whole
        self._root = root
        self._rules = rules
        self._defaults = defaults

    def model(self, model: type[Part], description: str = "") -> Schema:
        told = self._whole if model is self._root else self._whole["$defs"][model.__name__]
        fields = list(fields_of(model))
        doc = "" if model.__name__ in ATOMIC else model.__doc__ or ""
        made: Schema = {"description": _joined(description, doc), "type": "object"}
        required = [name for name, _, field in fields if field.is_required()]
        if required:
            made["required"] = required
        made["properties"] = {name: self._field(name, told["properties"][name], field) for name, _, field in fields}
        if model.__name__ in ATOMIC:
            made["x-kubernetes-map-type"] = "atomic"
        if self._rules and (rules := rules_of(model)):
            made["x-kubernetes-validations"] = [{"rule": r.rule, "message": r.message} for r in rules]
        return made

    def _field(self, name: str, told: Schema, field: FieldInfo) -> Schema:
        description = _joined(field.description or "")
        if field.examples:
            description += f" Example: {_shown(field.examples[0])}."
        made = self._value(name, told, field.annotation, description=description)
        if made.get("type") == "array":
            made.update(_list_type(name, made, field))
        if self._defaults and (default := _default(field)) is not None:
            made["default"] = default
        return made

    def _value(self, name: str, told: Schema, annotation: Any, *, description: str) -> Schema:
        if told.get("x-kubernetes-int-or-string"):
            return _int_or_string(told, description)
        options = [option for option in told.get("anyOf", ()) if option.get("type") != "null"]
        if len(options) > 1:
            raise ValueError(f"a field of several types has no structural schema: {told}")
        told = {**told, **options[0]} if options else told
        if "$ref" in told:
            return self.model(next(models_in(annotation)), description)
        made: Schema = {"description": description, **{name: told[name] for name in _KEPT if name in told}}
        if "const" in told:
            made |= {"type": "string", "enum": [told["const"]]}
        if made.get("type") == "integer":
            made["format"] = "int64"
            if made.get("maximum", 0) >= _MAX_INT64:
                del made["maximum"]  # the format says so already, and as a floating number it is out of bounds
        elif made.get("type") == "array":
            made["items"] = self._value(name, told["items"], annotation, description=ITEMS.get(name, ""))
        elif made.get("type") == "object":
            if "maxLength" in made:
                made["maxProperties"] = made.pop("maxLength")
            if isinstance(values := told.get("additionalProperties"), dict):
                made["additionalProperties"] = self._value(name, values, annotation, description=ITEMS[name])
        return made


def _int_or_string(told: Schema, description: str) -> Schema:
    """A number that may be written as text: Kubernetes takes whole numbers and texts, no fractions."""
    (text,) = (option for option in told["anyOf"] if option["type"] == "string")
    return {
        "description": f"{description} A fraction is written as text, in quotes.",
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": text["pattern"],
        "maxLength": text["maxLength"],
        "minimum": 0,
        "maximum": 999_999_999_999,
    }


def _list_type(name: str, schema: Schema, field: FieldInfo) -> Schema:
    model = next(models_in(field.annotation), None)
    if model is not None and (key := LIST_KEYS.get(model.__name__)) is not None:
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    is_set = name not in _ORDERED and _holds(field, unique)
    return {"x-kubernetes-list-type": "set" if is_set else "atomic"}


def _holds(field: FieldInfo, validator: Any) -> bool:
    """Whether a field is declared with a validator, in its own metadata or within an optional type."""

    def inside(annotation: Any) -> bool:
        metadata = getattr(annotation, "__metadata__", ())
        return any(getattr(m, "func", None) is validator for m in metadata) or any(
            inside(argument) for argument in getattr(annotation, "__args__", ())
        )

    return any(getattr(m, "func", None) is validator for m in field.metadata) or inside(field.annotation)


def _default(field: FieldInfo) -> Any:
    """What the API server writes where the field is absent, or None for nothing."""
    if field.is_required():
        return None
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return {}
    if isinstance(value, Decimal):
        return str(value)
    return to_jsonable_python(value)


def _joined(*texts: str) -> str:
    """Texts one after another; of two sentences that begin alike the longer one."""
    told: list[str] = []
    for sentence in (s.strip() for text in texts for s in _SENTENCE.split(" ".join(text.split())) if s.strip()):
        stem = _stem(sentence)
        for i, before in enumerate(told):
            if stem in before.lower() or _stem(before) in sentence.lower():
                told[i] = max(before, sentence, key=len)
                break
        else:
            told.append(sentence)
    return " ".join(told)


def _stem(sentence: str) -> str:
    """A sentence up to its first colon, to see whether another says the same."""
    return sentence.split(":")[0].rstrip(".").lower()


def _shown(example: Any) -> str:
    return example if isinstance(example, str) else repr(to_jsonable_python(example)).replace("'", '"')
