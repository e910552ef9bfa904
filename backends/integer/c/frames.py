"""Files of the folder that are mostly the same for every model: texts in `frame/` with placeholders."""

from __future__ import annotations

from functools import cache
from importlib import resources
from string import Template


@cache
def _template(name: str) -> Template:
    return Template(resources.files(__package__).joinpath("frame", name).read_text(encoding="utf-8"))


def fill(frame: str, **values: object) -> str:
    """The text of `frame` with its placeholders replaced; it ends with one line feed."""
    text = _template(frame).substitute({key: str(value) for key, value in values.items()})
    return text.rstrip("\n") + "\n"
