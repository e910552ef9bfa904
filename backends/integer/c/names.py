"""Identifiers of C from the names of models and tensors."""

from __future__ import annotations

import re

_WORDS = """
    auto break case char const continue default do double else enum extern float for goto if inline int long register
    restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    and asm bool catch class delete explicit export false friend mutable namespace new not operator or private protected
    public template this throw true try typeid typename using virtual xor main
"""
_RESERVED = frozenset(_WORDS.split())
"""Reserved words of C and of C++: the header of a model compiles in both."""


def identifier(text: str) -> str:
    """A valid identifier that reads like `text`: letters, digits and single underscores, beginning with a letter.

    >>> identifier("layer1.0.conv1"), identifier("3x3"), identifier("int"), identifier("__a--b__")
    ('layer1_0_conv1', 'm_3x3', 'int_', 'a_b')
    """
    name = re.sub(r"_+", "_", re.sub(r"[^0-9A-Za-z]", "_", text)).strip("_")
    if not name or name[0].isdigit():
        name = f"m_{name}" if name else "m"
    return f"{name}_" if name in _RESERVED else name


def model_identifier(text: str) -> str:
    """The prefix of everything that a model called `text` exports, in lower case.

    >>> model_identifier("MobileNetV2"), model_identifier("ResNet-18")
    ('mobilenetv2', 'resnet_18')
    """
    return identifier(identifier(text).lower())


class Names:
    """Assigns a unique identifier to each text, deterministically."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, text: str) -> str:
        """The identifier of `text`."""
        if text not in self._given:
            stem = name = identifier(text)
            count = 2
            while name in self._taken:
                name, count = f"{stem}_{count}", count + 1
            self._taken.add(name)
            self._given[text] = name
        return self._given[text]
