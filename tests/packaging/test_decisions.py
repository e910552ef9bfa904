"""Decision records have one form, and their numbers have no gaps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "docs" / "decisions").iterdir())
DATE = r"\d{4}-(0[1-9]|1[0-2])-([0-2]\d|3[01])"
STATUS = re.compile(rf"{DATE} · (accepted|superseded by \[\d+\]\(\d{{4}}-[a-z0-9-]+\.md\))(; amended {DATE})?")


def test_numbers_have_no_gaps() -> None:
    assert [record.name[:5] for record in RECORDS] == [f"{number:04}-" for number in range(1, len(RECORDS) + 1)]
    assert all(re.fullmatch(r"\d{4}(-[a-z0-9]+)+\.md", record.name) for record in RECORDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_title_date_status_question_and_decision(record: Path) -> None:
    title, status, question, rest = record.read_text(encoding="utf-8").split("\n\n", 3)
    assert re.fullmatch(rf"# {int(record.name[:4])}\. [A-Z].*[^.]", title)
    assert STATUS.fullmatch(status)
    assert question.startswith("**Question.** ")
    headings = re.findall(r"^\*\*([^*]+)\*\*", rest, re.MULTILINE)
    assert headings[0] == "Decision.", "the first heading after the question"
    amended = [item for item in headings if item.startswith("Amended")]
    assert bool(amended) == ("amended" in status)
    assert "**Question" not in rest


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_links_to_other_records_lead_there(record: Path) -> None:
    """The number in a link is the number of the record."""
    text = record.read_text(encoding="utf-8")
    for words, name in re.findall(r"\[([^\]]*)\]\((\d{4}-[^)]*\.md)\)", text):
        assert (record.parent / name).is_file()
        assert not words.isdigit() or int(words) == int(name[:4])
