"""What every part of the manifest is made of: a frozen, strict model, and bounded types for its fields.

In the manifest names are camelCase, in Python snake_case. Nothing is coerced: the text "5" is no number, as with
Kubernetes. A model may compare its fields (`cross_check`); its findings are told together with those about single
fields, so that a person meets all errors at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

SENTENCE: Final = "rowmill"
"""Type of the errors whose message is a sentence of ours, told as it stands."""

MAX_JSON_DEPTH: Final = 32
MAX_JSON_ITEMS: Final = 100_000

Finding = tuple[tuple[str | int, ...], str]
"""Where, below the model, and what is wrong, what is right."""


class Part(BaseModel):
    """Base of every model."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=False,
        allow_inf_nan=False,
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        """What is wrong between fields. `given` is raw input by camelCase name, of whatever types."""
        return []

    @model_validator(mode="wrap")
    @classmethod
    def _with_cross_check(cls, data: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        if not isinstance(data, dict):
            return handler(data)
        findings = cls.cross_check({_camel(name): value for name, value in data.items()})
        if not findings:
            return handler(data)
        errors = [InitErrorDetails(type=sentence(text), loc=loc, input=None) for loc, text in findings]
        try:
            handler(data)
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                kind: Any = error["type"]
                if kind == SENTENCE:
                    kind = sentence(error["msg"])
                errors.append(
                    InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))
                )
        raise ValidationError.from_exception_data(cls.__name__, errors)


class OneOf(Part):
    """A model of which exactly one of `alternatives` (camelCase) is set."""

    alternatives: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        found = [name for name in cls.alternatives if given.get(name) is not None]
        if len(found) == 1:
            return []
        wanted = f"exactly one of {', '.join(cls.alternatives)}"
        if not found:
            return [((), f"needs {wanted}; none is set")]
        are = f"both {found[0]} and {found[1]} are set" if len(found) == 2 else f"{', '.join(found)} are all set"
        return [((), f"takes {wanted}; {are}")]

    @property
    def kind(self) -> str:
        """Which alternative is set, by its name in the manifest."""
        for name, field in type(self).model_fields.items():
            if field.alias in self.alternatives and getattr(self, name) is not None:
                return str(field.alias)
        raise AssertionError("a validated model has one alternative set")


def not_above(given: Mapping[str, Any], low: str, low_default: int, high: str, high_default: int) -> list[Finding]:
    """A finding where the field `low` is above the field `high`, defaults counted in."""
    lower, upper = given.get(low), given.get(high)
    lower = low_default if lower is None else lower
    upper = high_default if upper is None else upper
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in (lower, upper)) or lower <= upper:
        return []
    told = "" if high in given else " (its default)"
    return [((low,), f"is {lower}, above {high}, which is {upper}{told}; make {low} smaller or {high} larger")]


def one_of_schema(*names: str) -> dict[str, Any]:
    """The part of a JSON schema that says that exactly one of these is set."""
    return {"oneOf": [{"required": [name]} for name in names]}


def sentence(text: str) -> PydanticCustomError:
    """An error whose message is `text`, braces and all."""
    return PydanticCustomError(SENTENCE, "{text}", {"text": text})


def _camel(name: Any) -> str:
    return to_camel(name) if isinstance(name, str) and "_" in name else str(name)


def _no_traps(text: str) -> str:
    """Refuse what neither Redis nor Postgres nor a header carries unharmed."""
    if "\0" in text:
        raise sentence("holds the character NUL, which cannot be stored; take it out")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise sentence("holds half of a surrogate pair, which is no character; write the whole character")
    return text


def check_json(value: Any) -> Any:
    """A JSON value within bounds; raises an error that says where it is not."""
    items = 0
    pending: list[tuple[Any, int, str]] = [(value, 0, "")]
    while pending:
        item, depth, place = pending.pop()
        items += 1
        if items > MAX_JSON_ITEMS:
            raise sentence(f"holds more than {MAX_JSON_ITEMS:,} values; make it smaller")
        if depth > MAX_JSON_DEPTH:
            raise sentence(f"is nested deeper than {MAX_JSON_DEPTH} levels; make it flatter")
        if isinstance(item, dict):
            if not all(isinstance(name, str) for name in item):
                raise sentence(f"{place or 'it'} has a name that is no text; put it in quotes")
            pending += [(inner, depth + 1, f"{place}.{name}") for name, inner in item.items()]
            for name in item:
                _no_traps(name)
        elif isinstance(item, list | tuple):
            pending += [(inner, depth + 1, f"{place}[{i}]") for i, inner in enumerate(item)]
        elif isinstance(item, str):
            _no_traps(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise sentence(f"{place or 'it'} is not a finite number, which JSON cannot hold")
        elif item is not None and not isinstance(item, bool | int | float):
            raise sentence(f"{place or 'it'} is no JSON value")
    return value


_ANY_JSON: Final[dict[str, Any]] = {"x-kubernetes-preserve-unknown-fields": True}

Json = Annotated[Any, AfterValidator(check_json), Field(json_schema_extra=_ANY_JSON)]
"""Any JSON value; templates may stand in its texts."""

JsonObject = Annotated[dict[str, Any], AfterValidator(check_json), Field(json_schema_extra=_ANY_JSON)]
"""A JSON object of any content."""

Bool = Annotated[bool, Field(strict=True)]
Int = Annotated[int, Field(strict=True)]

NoTraps = AfterValidator(_no_traps)
"""Every free text refuses NUL and lone surrogates."""

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
RUN_ID: Final = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
KEY_NAME: Final = r"^[-._a-zA-Z0-9]+$"
VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
HEADER: Final = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"
IDENTIFIER: Final = r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"
PYTHON_FUNCTION: Final = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
ID_OF_WORKFLOW: Final = r"^[A-Za-z0-9][-A-Za-z0-9]*$"
NAME_OF_SCHEMA: Final = r"^[-_a-zA-Z0-9]+$"
ERROR_CLASS: Final = r"^[A-Z][A-Za-z0-9]*$"
DECIMAL: Final = r"^[0-9]{1,12}(\.[0-9]{1,9})?$"

PATTERNS: Final[Mapping[str, str]] = {
    DNS_LABEL: "lower-case letters, digits and -, beginning and ending with a letter or digit",
    DNS_SUBDOMAIN: "lower-case letters, digits, - and ., beginning and ending with a letter or digit",
    RUN_ID: "letters, digits, -, _ and ., beginning and ending with a letter or digit",
    KEY_NAME: "letters, digits, -, _ and .",
    ID_OF_WORKFLOW: "letters, digits and -, beginning with a letter or digit",
    NAME_OF_SCHEMA: "letters, digits, - and _",
    VARIABLE: "letters, digits and _, not beginning with a digit",
    HEADER: "a header's name: letters, digits and -",
    IDENTIFIER: "letters, digits, -, _, . and /, beginning and ending with a letter or digit",
    PYTHON_FUNCTION: "package.module:function",
    ERROR_CLASS: "a name in CamelCase, such as HTTP503 or Timeout",
    DECIMAL: 'a decimal number of at most 12 digits and 9 after the point, such as "0.0025"',
}
"""What each pattern asks for, in words."""

DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)]
DnsSubdomain = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=IDENTIFIER)]
Column = Annotated[str, StringConstraints(min_length=1, max_length=256), NoTraps]
"""The name of a column."""


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list that names something twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise sentence(f'names "{value}" twice; name it once')
    return values


def _listed(value: Any) -> Any:
    # Sets and iterators would be taken for tuples too; a manifest has lists.
    if value is not None and not isinstance(value, list | tuple):
        raise PydanticCustomError("tuple_type", "not a list")
    return value


Listed = BeforeValidator(_listed)
