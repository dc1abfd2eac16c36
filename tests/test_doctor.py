"""What is said of an installation."""

import json

from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.cli import doctor as module
from llava_forgery.cli.doctor import NEEDED_BY, examine


def test_every_extra_says_what_it_is_for():
    assert set(examine()["extras"]) <= set(NEEDED_BY)
    assert all(extra["needed_by"] for extra in examine()["extras"].values())


def test_missing_and_old_packages_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(
        module.metadata, "requires",
        lambda _: ["torch>=2", "numpy>=99", 'no-such-package>=1; extra == "serve"'],
    )  # fmt: skip
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "numpy is " in result.output
    assert "not >=99" in result.output
    assert "[serve]: no-such-package is missing" in result.output
    assert "pip install 'llava-forgery[serve]'" in result.output
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    assert found["extras"][""]["packages"]["torch"]
    assert found["extras"]["serve"]["packages"] == {"no-such-package": None}
