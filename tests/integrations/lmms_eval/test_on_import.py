"""Registering when ``llava`` is imported; with the real one and lmms-eval in tests/clients."""

import importlib
import logging
import sys
from types import SimpleNamespace

import pytest

from llava_forgery.integrations.lmms_eval import on_import

NAME = "some_llava"
# tests/conftest.py keeps it from the plugin.
REGISTER = on_import.register_on_import.__wrapped__


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in llava's place, and what happens, in order."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "__init__.py").write_text("import sys\nsys.happened.append('executed')\n")
    (tmp_path / NAME / "part.py").touch()
    happened = []
    compat = SimpleNamespace(
        prepare_import=lambda: happened.append("prepared"),
        register_any=lambda: happened.append("registered"),
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "happened", happened, raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(on_import, "_PACKAGE", NAME)
    monkeypatch.setattr(on_import, "_compat", lambda: compat)
    yield compat
    for name in (NAME, f"{NAME}.part"):
        sys.modules.pop(name, None)


def test_it_registers_once_llava_is_imported_and_not_before(package):
    finders = list(sys.meta_path)
    REGISTER()
    REGISTER()
    assert len(sys.meta_path) == len(finders) + 1
    # Looking whether it is there, as many do, changes nothing.
    assert importlib.util.find_spec(NAME) is not None
    assert sys.happened == []
    importlib.import_module(f"{NAME}.part")
    importlib.import_module(NAME)
    assert sys.happened == ["prepared", "executed", "registered"]
    assert sys.meta_path == finders


def test_imported_already(package):
    importlib.import_module(NAME)
    REGISTER()
    assert sys.happened == ["executed", "registered"]


def test_another_package_of_that_name_still_works(package, caplog):
    def fail():
        raise AttributeError("no load_pretrained_model")

    package.register_any = fail
    REGISTER()
    with caplog.at_level(logging.WARNING):
        importlib.import_module(NAME)
    assert sys.happened == ["prepared", "executed"]
    assert "without the forgery skill: no load_pretrained_model" in caplog.text
