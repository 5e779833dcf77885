"""Frozen dataclasses to protobuf messages and back, by the names of their fields.

A dataclass whose fields are called as those of a message is its mirror: flows work with the dataclass, and their
`messages.py` says which message it belongs to. A field that is None is absent on the wire.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from distqat.errors import MessageError

T = TypeVar("T")


def encode(value: Any, kind: type[Message]) -> bytes:
    """The dataclass as bytes of that message."""
    data: bytes = fill(kind(), value).SerializeToString()
    return data


def decode(cls: type[T], data: bytes | memoryview, kind: type[Message]) -> T:
    """The dataclass from bytes of that message. Raises MessageError."""
    message = kind()
    try:
        message.ParseFromString(bytes(data))
    except DecodeError:
        raise MessageError(f"{len(data)} bytes that are not a {kind.__name__}") from None
    return read(cls, message)


def fill(message: Message, value: Any) -> Any:
    """Write the fields of a dataclass into the message of the same shape, and return it."""
    cls: Any = type(value)
    for write in _writers(cls):
        write(message, value)
    return message


def read(cls: type[T], message: Message) -> T:
    """The dataclass of a message of the same shape."""
    make: Any = cls
    return typing.cast(T, make(*[read_field(message) for read_field in _readers(make)]))


_Reader = Callable[[Any], Any]


_Writer = Callable[[Any, Any], None]
"""Puts a field of a dataclass, or its value, into a message."""


@functools.cache
def _writers(cls: type) -> tuple[_Writer, ...]:
    """How each field of the dataclass is written; worked out once, since messages are many."""
    hints = typing.get_type_hints(cls)
    return tuple(_writer(field.name, hints[field.name]) for field in dataclasses.fields(cls))


def _writer(name: str, hint: Any) -> _Writer:
    is_optional, kind = _unwrap(hint)
    value = operator.attrgetter(name)
    put = _putter(name, kind)

    def write_if_there(message: Any, source: Any) -> None:
        item = value(source)
        if item is not None:
            put(message, item)

    return write_if_there if is_optional else lambda message, source: put(message, value(source))


def _putter(name: str, kind: Any) -> _Writer:
    """From a field's value in the dataclass into protobuf."""
    target = operator.attrgetter(name)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if dataclasses.is_dataclass(typing.get_args(kind)[0]):
            return lambda message, items: _add(target(message), items)
        return lambda message, items: target(message).extend(items)
    if origin is not None and issubclass(origin, Mapping):
        return lambda message, items: target(message).update(items)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return lambda message, item: _put(target(message), item)
    return lambda message, item: setattr(message, name, item)


def _add(repeated: Any, items: Sequence[Any]) -> None:
    for item in items:
        fill(repeated.add(), item)


def _put(part: Any, item: Any) -> None:
    part.SetInParent()
    fill(part, item)


@functools.cache
def _readers(cls: type) -> tuple[_Reader, ...]:
    """How each field of the dataclass is read, in their order; worked out once, since messages are many."""
    hints = typing.get_type_hints(cls)
    return tuple(_reader(field.name, hints[field.name]) for field in dataclasses.fields(cls))


def _reader(name: str, hint: Any) -> _Reader:
    is_optional, kind = _unwrap(hint)
    value = operator.attrgetter(name)
    convert = _converter(kind)
    if is_optional:
        return lambda message: convert(value(message)) if message.HasField(name) else None
    return value if convert is _as_it_is else lambda message: convert(value(message))


def _converter(kind: Any) -> _Reader:
    """From a field's value in protobuf to that of the dataclass."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        entry: Any = typing.get_args(kind)[0]
        if not dataclasses.is_dataclass(entry):
            return tuple
        one = _converter(entry)
        return lambda items: tuple(one(item) for item in items)
    if origin is not None and issubclass(origin, Mapping):
        return dict
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        part: Any = kind
        return lambda message: read(part, message)
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def _unwrap(hint: Any) -> tuple[bool, Any]:
    """Whether the hint allows None, and what it is otherwise."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return True, kinds[0]
    return False, hint
