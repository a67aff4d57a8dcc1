"""Settings that an earlier version wrote, under the names of this one."""

from dataclasses import fields
from typing import Any

from mapet.config.setting import flat_name, group, option


def upgraded(content: Any, kind: type) -> Any:
    """The mapping ``content``, read from YAML, with the earlier names of the fields of ``kind`` replaced.

    An earlier name is one of the field's ``Option.old``, or its flat name (version 0.1: ``model: {model: …}``). All
    else stays as it is.
    """
    if not isinstance(content, dict):
        return content
    names = dict[str, str]()
    for one in fields(kind):
        earlier = {*option(one).old, flat_name(one)}
        names |= {name: one.name for name in earlier if one.name not in content}
    groups = {one.name: inner for one in fields(kind) if (inner := group(one))}
    found = {names.get(name, name): value for name, value in content.items()}
    return {name: upgraded(value, groups[name]) if name in groups else value for name, value in found.items()}
