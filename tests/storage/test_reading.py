"""Files are read if they are files, and JSON if it is no more than JSON."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qcompiler.errors import ArtifactError, InputError
from qcompiler.storage.reading import DEEPEST, decode, exists, parse_json, read_file


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"abc")
    assert read_file(tmp_path / "file") == b"abc"
    cases = {
        "pipe": "is a pipe; expected a regular file",
        "": "is a directory",
        "loop": "cannot be read",
        "gone": "there is no file",
        "x" * 300: "cannot be read",
        "a\0b": "is not a valid file name",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=words):
            read_file(f"{tmp_path}/{name}", InputError)
    with pytest.raises(ArtifactError, match="is a device"):
        read_file("/dev/zero")
    assert not exists(f"{tmp_path}/{'x' * 300}")
    assert exists(tmp_path)


BAD_JSON = {
    "": "not JSON",
    '{"a": 1, "a": 2}': "the key 'a' appears twice",
    "[NaN]": "NaN is not finite",
    "[-Infinity]": "is not finite",
    "[1e999]": "1e999 is not finite",
    "[" + "9" * 5000 + "]": "has 5000 digits",
    "[36893488147419103232]": "has 20 digits",
    "[" * 100_000: "the nesting is too deep",
    "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1): "the nesting is too deep",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=list(BAD_JSON.values()))
def test_what_is_more_than_json_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match=BAD_JSON[text]) as caught:
        parse_json(text, "x.json")
    assert "x.json" in str(caught.value)


def test_what_is_json_is_read() -> None:
    deep = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert parse_json(b'{"a": [1, -9223372036854775808, 0.5, null]}', "x") == {"a": [1, -(2**63), 0.5, None]}
    assert parse_json(deep, "x")
    with pytest.raises(InputError, match="not UTF-8: byte 1"):
        decode(b"a\xff", "x", InputError)
