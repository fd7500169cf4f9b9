"""What a worker is configured with, for people: settings, limits, the broker and its options, without any secret."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from backplane.connection.limits import Limits
from backplane.journal.fields import flat
from backplane.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backplane.worker.runtime import Runtime

__all__ = ["configuration_of"]

# Options of adapters, which others can write, whose value may be a secret or lead to one.
_SECRET: Final = re.compile(r"pass|secret|token|seed|credential|(^|_)key$")
_MASK: Final = "***"


def configuration_of(runtime: Runtime) -> dict[str, dict[str, Any]]:
    """Return it by part, each with its values by name, as JSON: numbers, texts, booleans, `None` where it is off.

    `changed` has the settings and limits that differ from their defaults.
    """
    settings, limits = _values(runtime.settings, Settings), _values(runtime.policy.limits, Limits)
    broker, presence = runtime.broadcaster, () if runtime.cluster is None else runtime.cluster.rules
    return {
        "settings": settings,
        "limits": limits,
        "changed": _changed(settings, Settings()) | _changed(limits, Limits()),
        "broker": {"url": runtime.broker_url, **_masked(broker.options.model_dump()), **_shown(_data(broker))},
        "rules": {"history": _patterns(runtime.history_rules or ()), "presence": _patterns(presence)},
    }


def _patterns(rules: Iterable[tuple[str, object]]) -> str:
    return ", ".join(pattern for pattern, _ in rules)


def _values(options: object, of: type) -> dict[str, Any]:
    return _shown({field.name: getattr(options, field.name) for field in fields(of)})


def _data(broker: Any) -> dict[str, Any]:
    capabilities = broker.capabilities
    return {field.name: getattr(capabilities, field.name) for field in fields(capabilities)}


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else flat({name: value})[name] for name, value in values.items()}


def _masked(values: Mapping[str, Any]) -> dict[str, Any]:
    return _shown({name: _MASK if value and _SECRET.search(name) else value for name, value in values.items()})


def _changed(values: Mapping[str, Any], defaults: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != _shown({name: getattr(defaults, name)})[name]}
