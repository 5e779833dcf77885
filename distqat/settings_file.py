"""What a config file and `--set` say, as plain values, and the file of all defaults. What they mean: see `config`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from distqat.errors import ConfigError


class _Yaml(yaml.SafeLoader):
    """Scalars as people mean them: `off` and `no` are words, `1e-3` is a number, `2026-01-31` is a name."""


_Yaml.yaml_implicit_resolvers = {
    letter: [entry for entry in entries if entry[0].rpartition(":")[2] not in ("bool", "float", "timestamp")]
    for letter, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+|[0-9]*\.[0-9]+|[0-9]+\.)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


def _parse(text: str) -> Any:
    return yaml.load(text, _Yaml)


def read(file: Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises ConfigError."""
    try:
        values = _parse(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {_one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold sections, not a {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


def nest(overrides: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1"]` as `{"a": {"b": 1}}`; values are read as YAML. Raises ConfigError."""
    tree: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise ConfigError(f"--set {override}: write section.key=value")
        level: Any = tree
        for key in keys[:-1]:
            level = level.setdefault(key, {})
            if not isinstance(level, dict):
                raise ConfigError(f"--set {override}: {key} has a value already, it holds no keys")
        try:
            # Nothing behind the equals sign is an empty word, not YAML's null, which no setting takes.
            level[keys[-1]] = _parse(text) if text.strip() else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not YAML: {_one_line(error)}") from None
    return tree


def template(settings: type[BaseModel]) -> str:
    """Every setting of these sections with its meaning and default, as YAML."""
    lines = ["# Every setting, with its default. A config file needs only what differs from this."]
    for name, section in settings.model_fields.items():
        kind = section.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        lines += ["", f"# {kind.__doc__}", f"{name}:"]
        for key, field in kind.model_fields.items():
            value = json.dumps(field.get_default(call_default_factory=True), default=BaseModel.model_dump)
            lines += [f"  # {field.description}", f"  {key}: {value}"]
    return "\n".join(lines) + "\n"


class FileSource(PydanticBaseSettingsSource):
    """The config file of this load, below the environment in precedence."""

    values: ContextVar[Mapping[str, Any]] = ContextVar("values", default=MappingProxyType({}))

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.values.get())
