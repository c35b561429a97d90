"""A part of an audit whose settings are its fields."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from palimpsest.errors import BadSetting, unknown

LARGEST = 1_000_000
"""The largest whole number that a part may be set to: more of anything would never end."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """Base of erasers, attacks, judges and measures: a frozen dataclass whose fields are the settings.

    Subclasses are decorated with ``@dataclass(frozen=True, kw_only=True)``, set ``name`` and check ranges
    in ``__post_init__`` with ``BadSetting``.
    """

    name: ClassVar[str] = ""

    @property
    def spec(self) -> dict[str, Any]:
        """``{"name": ..., setting: value, ...}``: rebuilds the part; every setting is written out."""
        return {"name": self.name} | dataclasses.asdict(self)

    @property
    def label(self) -> str:
        """The name, and the settings that differ from their defaults: ``esd(variant=u)``."""
        return self._called({name: str(value) for name, value in self._changed().items()})

    @property
    def brief(self) -> str:
        """The label for a screen: of a list of more than three, how many there are."""
        return self._called(
            {
                name: f"{len(value)} given" if isinstance(value, tuple) and len(value) > 3 else str(value)
                for name, value in self._changed().items()
            }
        )

    def _changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        values = {field.name: (getattr(self, field.name), _default(field)) for field in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def _called(self, changed: Mapping[str, str]) -> str:
        settings = ",".join(f"{name}={value}" for name, value in changed.items())
        return f"{self.name}({settings})" if settings else self.name

    def require_least(self, **bounds: float) -> None:
        """Raises ``BadSetting`` for a setting below its bound; one that is None is left to the part."""
        for setting, bound in bounds.items():
            value = getattr(self, setting)
            if value is not None and value < bound:
                raise BadSetting(f"{self.name}: expected {setting} >= {bound}, got {value}")


PartT = TypeVar("PartT", bound=Component)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def find(what: str, parts: Sequence[type[PartT]], name: str) -> type[PartT]:
    """The class called ``name``; raises ``UnknownName``, which lists those that there are."""
    for part in parts:
        if part.name == name:
            return part
    raise unknown(what, name, (part.name for part in parts))


def build(what: str, parts: Sequence[type[PartT]], spec: str | Mapping[str, Any]) -> PartT:
    """The part that ``spec`` (a name, or a table with ``name`` and settings) describes.

    Raises ``UnknownName`` for a name, ``BadSetting`` for a setting that is unknown or of the wrong type.
    """
    settings: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise BadSetting(
            f"expected a table with the {what}'s name, got {dict(spec) if not isinstance(spec, str) else spec}"
        )
    part = find(what, parts, name)
    fields = {field.name for field in dataclasses.fields(part)}
    for setting in settings:
        if setting not in fields:
            raise BadSetting(
                f"{what} {name!r} has no setting {setting!r}; there are: {', '.join(sorted(fields)) or 'none'}"
            )
    types = get_type_hints(part)
    for setting, value in settings.items():
        # A choice that looks like a number or a truth value may be written as one: uce:form=2023.
        if isinstance(value, int) and (word := str(value).lower()) in get_args(types[setting]):
            settings[setting] = word
        if isinstance(value, int) and abs(value) > LARGEST:
            raise BadSetting(f"{what} {name!r}, setting {setting!r}: expected at most {LARGEST:,}, got {value}")
    # JSON mode is strict about types (a string is no number) and lenient about tuples written as lists.
    checked = with_config(ConfigDict(strict=True, allow_inf_nan=False))(part)
    try:
        return TypeAdapter(checked).validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise BadSetting(f"{what} {name!r}, setting {where!r}: {first['msg']}, got {first['input']!r}") from None
