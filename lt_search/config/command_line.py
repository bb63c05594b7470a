"""Command-line options generated from option classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from lt_search.config.validation import describe
from lt_search.errors import Problems

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

EMPTY = ("is empty", "give a value, or leave it out")
"""What is wrong with an empty value, and the fix."""


@dataclass(frozen=True)
class Argument:
    """How a field's value is written on the command line; part of the field's annotation."""

    metavar: str
    parse: Callable[[str], Any] | None = None
    """Reads the text; raises `ValueError`. None: the field's type does."""


def add_options(
    parser: argparse._ActionsContainer,
    options: type,
    names: Iterable[str] | None = None,
    required: Container[str] = (),
    helps: Mapping[str, str] | None = None,
) -> None:
    """Adds an option for each field of a pydantic dataclass: its docstring is the help.

    A field that is True by default gets `--no-NAME`, one that is False `--NAME`; an option for a tuple may be repeated.

    Args:
        parser: a parser or an argument group.
        options: the dataclass.
        names: the fields to add; None: all.
        required: those that must be given, beside the fields without a default.
        helps: other help texts, by field.
    """
    fields = _fields(options)
    for name in names or fields:
        field = fields[name]
        text = ((helps or {}).get(name) or field.description or "").replace("%", "%%")
        if isinstance(field.default, bool):
            parser.add_argument(_flag(name, field), dest=name, action="store_true", help=text)
            continue
        if isinstance(field.default, str | int | float) and field.default != "":
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            text += f" (default: {shown})"
        action = "append" if isinstance(field.default, tuple) else "store"
        must = name in required or field.is_required()
        parser.add_argument(
            _flag(name, field), dest=name, action=action, metavar=_metavar(field), help=text, required=must
        )


def read_options(
    namespace: argparse.Namespace, options: type, problems: Problems, names: Iterable[str] | None = None
) -> dict[str, Any]:
    """The values of the options that were given, by field; what is wrong with the others goes to `problems`."""
    fields = _fields(options)
    found: dict[str, Any] = {}
    for name in names or fields:
        field, given = fields[name], getattr(namespace, name)
        if given is None or given is False:
            continue
        flag = _flag(name, field)
        if _has_empty(given):
            problems.add(flag, *EMPTY)
            continue
        try:
            found[name] = _read(field, given)
        except ValidationError as error:
            for detail in error.errors():
                problems.add(flag, describe(detail))
        except ValueError as error:
            problems.add(flag, str(error))
    return found


def read_argument(namespace: argparse.Namespace, name: str, problems: Problems) -> str:
    """The text of a positional argument, which must not be empty."""
    given: str = getattr(namespace, name)
    if _has_empty(given):
        problems.add(name, *EMPTY)
    return given


def _has_empty(given: Any) -> bool:
    return any(isinstance(text, str) and not text.strip() for text in (given if isinstance(given, list) else [given]))


def _read(field: FieldInfo, given: Any) -> Any:
    if isinstance(field.default, bool):
        return not field.default
    argument = _argument(field)
    if argument is not None and argument.parse is not None:
        given = [argument.parse(text) for text in given] if isinstance(given, list) else argument.parse(given)
    kind: Any = Annotated[field.annotation, *(field.metadata or [None])]
    return TypeAdapter(kind).validate_python(given)


def _fields(options: type) -> Mapping[str, FieldInfo]:
    fields: Mapping[str, FieldInfo] = options.__pydantic_fields__  # type: ignore[attr-defined]
    return fields


def _flag(name: str, field: FieldInfo) -> str:
    return f"--{'no-' if field.default is True else ''}{name.replace('_', '-')}"


def _argument(field: FieldInfo) -> Argument | None:
    return next((entry for entry in field.metadata if isinstance(entry, Argument)), None)


def _metavar(field: FieldInfo) -> str:
    argument = _argument(field)
    if argument is not None:
        return argument.metavar
    kinds = get_args(field.annotation) if get_origin(field.annotation) in {Union, UnionType} else (field.annotation,)
    if get_origin(kinds[0]) is Literal:
        return "|".join(get_args(kinds[0]))
    return {int: "N", float: "F"}.get(kinds[0], "TEXT")
