"""What the models say about themselves: the model below a field, its name in the manifest, where it lies."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from rowmill.spec.base import Part


def models_in(annotation: Any) -> Iterator[type[Part]]:
    """The models that an annotation names, however deep in lists, options and the like."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def is_list(annotation: Any) -> bool:
    """Whether a field holds a list, or may."""
    if typing.get_origin(annotation) is tuple:
        return True
    return any(is_list(a) for a in typing.get_args(annotation) if typing.get_origin(annotation) is not dict)


def fields_of(model: type[Part]) -> Iterator[tuple[str, str, FieldInfo]]:
    """Each field's name in the manifest, its attribute and what is declared of it."""
    for attribute, field in model.model_fields.items():
        yield field.alias or attribute, attribute, field


def model_at(model: type[Part], place: tuple[str | int, ...]) -> type[Part] | None:
    """The model that lies at a place below `model`, or None where there is none."""
    current: type[Part] | None = model
    for part in place:
        if current is None:
            return None
        if isinstance(part, int):
            continue
        declared = next((f for name, _, f in fields_of(current) if name == part), None)
        current = next(models_in(declared.annotation), None) if declared is not None else None
    return current
