"""A config: YAML in, a frozen, typed, resolved experiment out; every mistake with its place.

    load.py      a file and its overrides to an `Experiment`, and back
    tree.py      files, `extends:`, dotted paths, `-s`
    yaml12.py    YAML 1.2 text to nodes with places, within limits
    schema.py    the keys of a config; JSON Schema
    shape.py     the kinds of value: checking, writing back
    resolve.py   what relates two values: pins, `when`
    loads.py     `from`, `to`, `via`, `on`
    hypervisor.py  presets, and what loads and axes ask of each other
    expect.py    `check:` expressions
    quantity.py  `200us`, `2k/s`
    errors.py    `ConfigError`, positions, carets
    model.py     the result, which every process of a run imports

Three kinds of wrong meet here only in the user's: `ConfigError`.  yaml is imported inside the
calls, because the processes that import `config.model` must not carry it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emulator.config.errors import ConfigError

if TYPE_CHECKING:
    from emulator.config.expect import Outcome
    from emulator.config.model import Experiment


def load_experiment(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> "Experiment":
    """The experiment that a file describes, with `key.path=value` overrides.

    ConfigError, whose text is every mistake with its place.
    """
    from emulator.config import load

    return load.load_experiment(path, overrides)


def resolved_yaml(experiment: "Experiment") -> str:
    """The experiment as a config with nothing left to default; loads to an equal experiment."""
    from emulator.config import load

    return load.resolved_yaml(experiment)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config, for editors; `pirlab.schema.json` is this."""
    from emulator.config import schema

    return schema.json_schema()


def evaluate(check: str, summary: Mapping[str, Any]) -> "Outcome":
    """Whether a `check:` holds of a run's summary: (held, value, why not)."""
    from emulator.config import expect

    return expect.evaluate(check, summary)


__all__ = ["ConfigError", "evaluate", "json_schema", "load_experiment", "resolved_yaml"]
