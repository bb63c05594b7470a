"""Validation errors of pydantic, and YAML files, as problems that a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from lt_search.config.values import shorten
from lt_search.errors import Problem, UserError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_SENTENCES = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field",
    "unexpected_keyword_argument": "is not a known field",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "must be an integer of fewer digits",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "literal_error": "must be one of {expected}",
    "too_short": "must have at least {min_length} entries",
    "dict_type": "must be a mapping of names to values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping of names to values",
    "dataclass_type": "must be a mapping of names to values",
    "model_attributes_type": "must be a mapping of names to values",
    "recursion_loop": "contains itself",
}
"""What is wrong, by the type of a pydantic error."""

_NAMELESS = {"missing", "extra_forbidden", "unexpected_keyword_argument"}
"""Types of errors about a field's name: its value says nothing."""


def describe(detail: ErrorDetails) -> str:
    """One validation error as a plain sentence, with the value where that is a scalar."""
    kind, context = detail["type"], dict(detail.get("ctx", {}))
    context = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    if "expected" in context:
        context["expected"] = str(context["expected"]).replace("'", "").replace(" or ", ", ")
    if kind not in _SENTENCES:
        return str(context.get("error", detail["msg"]))  # of a validator of our own, or a trainer's
    text = _SENTENCES[kind].format(**context)
    given = detail["input"]
    is_scalar = isinstance(given, bool | int | float | str) and kind not in _NAMELESS
    return f"{text} (given: {shorten(given)})" if is_scalar else text


def validation_problems(error: ValidationError, place: str) -> list[Problem]:
    """A validation error as the user's mistakes, one per field of the file or option that `place` names."""
    found = []
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        found.append(Problem(f"{place}: {field}" if field else place, describe(detail)))
    return found


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that occurs twice in one mapping, of which YAML would take the last.

    It refuses integers of more than 64 bits, too, which Python cannot even print beyond some length.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                problem = f"the key {key.value!r} occurs twice, first in line {first[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            first[key.value] = key.start_mark.line + 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(node)) if len(node.value) < MAX_LITERAL else MAX_INTEGER
        if abs(value) >= MAX_INTEGER:
            raise yaml.constructor.ConstructorError(None, None, "the integer has too many digits", node.start_mark)
        return value


MAX_INTEGER, MAX_LITERAL = 2**63, 100
"""Bounds of an integer and of the characters that write it."""

_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str | bytes, place: str) -> Any:
    """The plain values of a YAML text.

    Raises:
        UserError: if the text is not valid YAML, or has a key twice; with the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = f"is not valid YAML: {where}{error.problem or error.context}"
    except yaml.reader.ReaderError as error:
        what = f"is not valid YAML: {error.reason} at position {error.position}"
    except RecursionError:
        what = "is nested too deeply"
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        what = f"has a value that cannot be read: {str(error).splitlines()[0]}"  # raised by PyYAML for odd scalars
    raise UserError(Problem(place, what, "correct the file"))
