"""The measured figures of the pages are those of the records."""

import re
from pathlib import Path

import pytest

from eval.figures import figures_table, papers_tables
from llava_forgery.evaluation.real import real_table
from llava_forgery.files import read_json

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "eval/records"


@pytest.mark.parametrize("page", ["README.md", "docs/figures.md"])
def test_pages_have_the_table_of_the_records(page):
    assert figures_table() in (ROOT / page).read_text(encoding="utf-8")


def test_the_card_has_the_table_of_its_record():
    card = (ROOT / "llava_forgery/default/README.md").read_text(encoding="utf-8")
    assert real_table(read_json(RECORDS / "default/real.json")).strip() in card


def test_every_record_is_named_with_its_script_and_commit():
    page = (ROOT / "docs/figures.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if "`eval/records/" in line]
    for row in rows:
        assert re.search(r"`python |`llava-forgery |`(?:bash )?scripts/", row), row
        assert re.search(r"\b[0-9a-f]{7}\b", row), row
    named = [ROOT / name for row in rows for name in re.findall(r"`(eval/records/[^`]+)`", row)]
    for record in RECORDS.rglob("*.json"):
        assert record in named or record.parent in named, record


def test_the_papers_tables_are_those_of_their_records():
    page = (ROOT / "eval/README.md").read_text(encoding="utf-8")
    tables = papers_tables()
    assert tables.keys() >= {"table1", "table2", "table3", "table4"}
    for name, table in tables.items():
        assert table in page, name
        record = read_json(RECORDS / "tables" / f"{name}.json")
        assert len(record["seeds"]) >= 3
        assert record["commit"][:7] in page, name
