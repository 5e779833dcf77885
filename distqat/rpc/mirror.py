"""Frozen dataclasses to protobuf messages and back, by the names of their fields.

A dataclass whose fields are called as those of a message is its mirror: flows work with the dataclass, and their
`messages.py` says which message it belongs to. A field that is None is absent on the wire.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
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
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item is None:
            continue
        if dataclasses.is_dataclass(item):
            part = getattr(message, field.name)
            part.SetInParent()
            fill(part, item)
        elif isinstance(item, Mapping):
            getattr(message, field.name).update(item)
        elif isinstance(item, tuple | list):
            target = getattr(message, field.name)
            for entry in item:
                if dataclasses.is_dataclass(entry):
                    fill(target.add(), entry)
                else:
                    target.append(entry)
        else:
            setattr(message, field.name, item)
    return message


def read(cls: type[T], message: Message) -> T:
    """The dataclass of a message of the same shape."""
    values = {name: _read_field(message, name, hint) for name, hint in _hints(typing.cast(type, cls)).items()}
    return cls(**values)


def _read_field(message: Message, name: str, hint: Any) -> Any:
    is_optional, kind = _unwrap(hint)
    if is_optional and not message.HasField(name):
        return None
    value = getattr(message, name)
    origin = typing.get_origin(kind)
    if origin is tuple:
        entry: Any = typing.get_args(kind)[0]
        return tuple(_read_entry(entry, item) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return dict(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return read(kind, value)
    return value


def _read_entry(kind: type, item: Any) -> Any:
    return read(kind, item) if dataclasses.is_dataclass(kind) else item


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _unwrap(hint: Any) -> tuple[bool, Any]:
    """Whether the hint allows None, and what it is otherwise."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return True, kinds[0]
    return False, hint
