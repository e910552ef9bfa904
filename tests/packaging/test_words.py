"""Rules for the words of docstrings that a program can check."""

from __future__ import annotations

import ast

from benchmarks.house import ROOT, forbidden_openings, sources

FOLDERS = ("tests", "benchmarks", "conformance", "examples", "docs")
FILES = [*sources(ROOT), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]


def test_descriptions_begin_with_a_noun_phrase_or_a_verb() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in FILES
        for line, text in forbidden_openings(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)
