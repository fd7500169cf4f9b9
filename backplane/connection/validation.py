"""Validates JSON from outside by a pydantic model in bounded time: what clients send, what others publish.

Validation runs in the event loop, so one message must not occupy it. Pydantic collects every error of an input, tries
each member of a union, and offers no limit. Three rules bound it here; they change nothing for a valid message:

- A sequence ends at its first invalid item (`fail_fast`, pydantic 2.8 and newer). Mappings end once they have taken
  `_MAPPING_SECONDS` of processor time.
- A union that leads to itself through two of its members is refused: an input of d levels would take 2**d steps.
- Of many errors only the number is reported, as building the list takes longer than finding them.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, get_args, overload

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic_core import SchemaValidator, core_schema

from backplane.errors import ConfigurationError, InvalidMessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

__all__ = ["Validator", "error_details", "parse", "validator_for"]

ModelT = TypeVar("ModelT")

# The answer to a hostile message is bounded: at most 20 entries of some 100 characters each.
_MAX_DETAILS: Final = 20
_MAX_CHARACTERS: Final = 100
_MAX_LOCATION: Final = 10
# Building the list takes 1.5 µs an error.
_MAX_ERRORS: Final = 1_000
_MAPPING_SECONDS: Final = 0.02
# Reading the clock at every key would cost more than most values.
_KEYS_PER_CHECK: Final = 16

_SEQUENCES: Final = frozenset({"list", "set", "frozenset", "tuple"})
# The entry with the schema of the keys, of mappings whose keys a client chooses.
_KEYS: Final = (("dict", "keys_schema"), ("model-fields", "extras_keys_schema"))
_CLASSES: Final = frozenset({"model", "dataclass"})
_OBJECTS: Final = frozenset({"model", "dataclass", "typed-dict", "dict"})
# The entries of a core schema that hold schemas; nothing else is searched, such as a default value.
_INSIDE: Final = frozenset({
    "schema", "items_schema", "keys_schema", "values_schema", "extras_schema", "extras_keys_schema", "lax_schema",
    "strict_schema", "json_schema", "python_schema", "arguments_schema", "var_args_schema", "choices", "steps",
    "definitions", "fields",
})  # fmt: skip
_Schema = dict[str, Any]


class _TookTooLongError(Exception):
    """Ends the validation of a mapping; pydantic passes it on at once."""


class Validator(Generic[ModelT]):
    """Validates JSON text by one model.

    Attributes:
        adapter: Pydantic's adapter for the model, for data of the application itself.

    Raises:
        ConfigurationError: Pydantic cannot validate `model`, or not in bounded time.
    """

    def __init__(self, model: Any) -> None:
        try:
            adapter: Any = cast("Any", model) if isinstance(model, TypeAdapter) else TypeAdapter(model)
            schema: _Schema = cast("_Schema", adapter.core_schema)
            len(
                schema
            )  # raises where an annotation is not defined: pydantic makes the schema of that one when it is read
        except (PydanticUserError, PydanticUndefinedAnnotation) as error:
            words = str(error).partition("\n")[0]
            raise ConfigurationError(f"pydantic cannot validate {model!r}: {words}") from error
        _refuse_exponential_unions(model, schema)
        self.adapter: TypeAdapter[ModelT] = adapter
        self._mapping = _MappingClock()
        self._validator = _validator_of(adapter, _bounded_schema(schema, self._mapping.check))

    def parse(self, data: str | bytes) -> ModelT:
        """Return what the JSON text `data` holds.

        Raises:
            InvalidMessageError: It is not JSON, or not of this type. It never holds the input.
        """
        self._mapping.start()
        try:
            parsed: ModelT = self._validator.validate_json(data)
        except ValidationError as error:
            raise InvalidMessageError(error_details(error)) from None  # the cause would hold the input
        except _TookTooLongError:
            raise InvalidMessageError([_detail("too_many_errors", "Too large to be validated")]) from None
        return parsed


@overload
def parse(model: Validator[ModelT] | TypeAdapter[ModelT] | type[ModelT], data: str | bytes) -> ModelT: ...
@overload
def parse(model: Any, data: str | bytes) -> Any: ...
def parse(model: Any, data: str | bytes) -> Any:
    """Return what the JSON text `data` holds, as `model`: a type pydantic can validate, or a `TypeAdapter`.

    Raises:
        InvalidMessageError: It is not JSON, or not of that type.
        ConfigurationError: Pydantic cannot validate `model`, or not in bounded time.
    """
    return validator_for(model).parse(data)


def validator_for(model: Any) -> Validator[Any]:
    """Return the validator for a type, from a cache where the type can be hashed.

    Raises:
        ConfigurationError: Pydantic cannot validate it, or not in bounded time.
    """
    if isinstance(model, Validator):
        return model  # pyright: ignore[reportUnknownVariableType]
    try:
        hash(model)
    except TypeError:
        return Validator(model)
    # `A | B` equals `B | A`, and yet the first that fits wins: the order is part of the key.
    return _cached_validator(model, get_args(model))


@lru_cache(maxsize=256)
def _cached_validator(model: Any, _: tuple[Any, ...]) -> Validator[Any]:
    return Validator(model)


def error_details(error: ValidationError) -> list[dict[str, Any]]:
    """Return what is wrong, without the input, bounded in entries and in characters."""
    count = error.error_count()
    if count > _MAX_ERRORS:
        return [_detail("too_many_errors", f"{count:,} errors")]
    found = error.errors(include_url=False, include_input=False)[:_MAX_DETAILS]
    return [
        _detail(detail["type"], _unquoted(detail["type"], detail["msg"], detail.get("ctx", {})), *detail["loc"])
        for detail in found
    ]


def _detail(kind: str, words: str, *location: str | int) -> dict[str, Any]:
    place = [_short(part) if isinstance(part, str) else part for part in location[:_MAX_LOCATION]]
    return {"loc": place, "msg": _short(words), "type": _short(kind)}


def _unquoted(kind: str, words: str, context: Mapping[str, Any]) -> str:
    # The one message of pydantic that repeats a text of the input.
    if kind == "union_tag_invalid":
        return f"Input tag does not match any of the expected tags: {context.get('expected_tags')}"
    return words


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…"


class _MappingClock:
    """Ends a validation whose mappings have taken too long; called at every key."""

    def __init__(self) -> None:
        self._keys = 0
        self._ends_at = 0.0

    def start(self) -> None:
        """Begin with a message."""
        self._keys = 0

    def check(self, key: Any) -> Any:
        """Return `key`.

        Raises:
            _TookTooLongError: Time is up.
        """
        self._keys += 1
        if self._keys == 1:
            # Processor time: what other processes take must not count against the message.
            self._ends_at = time.thread_time() + _MAPPING_SECONDS
        elif self._keys % _KEYS_PER_CHECK == 0 and time.thread_time() > self._ends_at:
            raise _TookTooLongError
        return key


def _validator_of(adapter: TypeAdapter[Any], schema: Any) -> SchemaValidator:
    from pydantic._internal._config import ConfigWrapper  # the config of a TypeAdapter has no public name

    config: Any = getattr(adapter, "_config", None)
    core_config = None if config is None else ConfigWrapper(config).core_config(None)
    # From 2.11 on pydantic takes a model's own validator, which has no bounds, in place of the schema of the model.
    try:
        return SchemaValidator(schema, core_config, _use_prebuilt=False)
    except TypeError:  # pragma: no cover  # pydantic 2.12 and older: no such parameter, but only for complete models
        with ExitStack() as stack:
            for part in _parts(schema):
                model: Any = part.get("cls") if part["type"] in _CLASSES else None
                if model is not None and model.__dict__.get("__pydantic_complete__"):
                    stack.enter_context(_incomplete(model))
            return SchemaValidator(schema, core_config)


@contextmanager
def _incomplete(model: Any) -> Generator[None]:  # pragma: no cover  # only for pydantic 2.12 and older
    model.__pydantic_complete__ = False
    try:
        yield
    finally:
        model.__pydantic_complete__ = True


def _bounded(part: Any, check: Callable[[Any], Any]) -> Any:
    """Return a copy of a core schema whose sequences end at their first invalid item, and whose mappings in time."""
    match part:
        case list():
            return [_bounded(entry, check) for entry in part]  # pyright: ignore[reportUnknownVariableType]
        case (member, label):  # a member of a union
            return (_bounded(member, check), label)
        case dict() if _is_schema(part):
            return _bounded_schema(cast("_Schema", part), check)
        case dict():  # by field name, or by tag
            return {name: _bounded(entry, check) for name, entry in cast("_Schema", part).items()}
        case _:
            return part


def _bounded_schema(schema: _Schema, check: Callable[[Any], Any]) -> _Schema:
    copy = schema | {name: _bounded(schema[name], check) for name in _INSIDE & schema.keys()}
    if copy["type"] in _SEQUENCES:
        copy["fail_fast"] = True
    for kind, keys in _KEYS:
        if copy["type"] == kind and (kind == "dict" or "extras_schema" in copy):
            copy[keys] = core_schema.no_info_after_validator_function(check, copy.get(keys, core_schema.any_schema()))
    return copy


def _refuse_exponential_unions(model: Any, schema: _Schema) -> None:
    definitions = {part["ref"]: part for part in _parts(schema) if "ref" in part}
    for union in _parts(schema):
        if union.get("type") != "union":
            continue
        ways: dict[str, int] = {}
        for member in _children(union):
            kind = _json_kind(member, definitions)
            if kind is not None and _leads_to(member, union, definitions, set()):
                ways[kind] = ways.get(kind, 0) + 1
        if any(count > 1 for count in ways.values()):
            raise ConfigurationError(
                f"{model!r} holds a union that leads to itself through several members: checking one message of a "
                "hundred bytes could take minutes; give the union a discriminator, as in "
                "Annotated[A | B, Field(discriminator='kind')]"
            )


def _children(schema: _Schema) -> Iterator[_Schema]:
    for name in _INSIDE & schema.keys():
        part: Any = schema[name]
        entries: list[Any] = [part]
        if isinstance(part, list):
            entries = [_unlabelled(entry) for entry in part]  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(part, dict) and not _is_schema(part):
            entries = list(cast("_Schema", part).values())
        yield from (entry for entry in entries if isinstance(entry, dict))


def _unlabelled(entry: Any) -> Any:
    return entry[0] if isinstance(entry, tuple) else entry  # pyright: ignore[reportUnknownVariableType]


def _is_schema(part: Any) -> bool:
    return isinstance(part.get("type"), str)  # and not a field of that name


def _parts(schema: _Schema) -> Iterator[_Schema]:
    """Yield every schema inside a schema, itself first; recursion is by references, which are not followed."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        yield part
        waiting.extend(_children(part))


def _leads_to(schema: _Schema, union: _Schema, definitions: Mapping[str, _Schema], seen: set[str]) -> bool:
    for part in _parts(schema):
        if part is union:
            return True
        reference = part.get("schema_ref") if part.get("type") == "definition-ref" else None
        if reference is not None and reference not in seen:
            seen.add(reference)
            if _leads_to(definitions[reference], union, definitions, seen):
                return True
    return False


def _json_kind(schema: _Schema, definitions: Mapping[str, _Schema]) -> str | None:
    """Return which JSON a schema accepts, `object` or `array`; `None` for a value that holds no others."""
    for _ in range(20):  # through wrappers and references, to what decides
        kind = schema.get("type")
        if kind in _OBJECTS:
            return "object"
        if kind in _SEQUENCES:
            return "array"
        if kind == "definition-ref":
            schema = definitions[schema["schema_ref"]]
        elif isinstance(schema.get("schema"), dict):
            schema = schema["schema"]
        else:
            return None
    return None
