"""Dataclasses and protobuf messages of the same shape."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from google.protobuf import descriptor_pb2 as pb

from distqat.errors import MessageError
from distqat.rpc import mirror


@dataclass(frozen=True)
class Options:
    java_package: str = ""


@dataclass(frozen=True)
class Enum:
    name: str


@dataclass(frozen=True)
class File:
    name: str
    dependency: tuple[str, ...]
    enum_type: tuple[Enum, ...]
    options: Options | None = None


@pytest.mark.parametrize(
    "file",
    [File("a", ("b", "c"), (Enum("x"), Enum("y")), Options("j")), File("", (), ()), File("a", (), (), Options())],
)
def test_a_dataclass_passes_as_its_message(file: File) -> None:
    data = mirror.encode(file, pb.FileDescriptorProto)
    message = pb.FileDescriptorProto.FromString(data)
    assert (message.name, list(message.dependency)) == (file.name, list(file.dependency))
    assert message.HasField("options") == (file.options is not None)
    assert mirror.decode(File, data, pb.FileDescriptorProto) == file
    assert mirror.decode(File, memoryview(data), pb.FileDescriptorProto) == file


def test_garbage_is_a_message_error() -> None:
    with pytest.raises(MessageError, match="4 bytes that are not a FileDescriptorProto"):
        mirror.decode(File, b"\xff\xff\xff\xff", pb.FileDescriptorProto)
