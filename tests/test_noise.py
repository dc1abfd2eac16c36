"""Which lines of other packages are left out, and that nothing else is changed."""

import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest

from llava_forgery.noise import FORKS, LINES, quiet

REPORT = "LlavaForConditionalGeneration LOAD REPORT from: host\nKey | Status\na.b | {}"
FOREIGN = [
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels: no"),
    ("numexpr.utils", "NumExpr defaulting to 2 threads."),
    ("transformers.modeling_utils", "`torch_dtype` is deprecated! Use `dtype` instead!"),
    ("transformers.modeling_utils", REPORT.format("UNEXPECTED")),
]


class Listening(logging.Handler):
    """Keeps the messages of some loggers."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def emit(self, record):
        self.heard.append(record.getMessage())


@pytest.fixture
def heard():
    handler = Listening()
    names = {name for name, _ in FOREIGN}
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    yield handler.heard
    for name, level in levels.items():
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(level)


def _say_all():
    for name, message in FOREIGN:
        logging.getLogger(name).warning(message)


def test_lines_are_left_out_inside_only(heard):
    with quiet():
        _say_all()
        with quiet():
            _say_all()
        _say_all()
    assert heard == []
    _say_all()
    assert heard == [message for _, message in FOREIGN]


def test_real_problems_pass(heard):
    said = [
        ("transformers.modeling_utils", REPORT.format("MISSING")),
        ("transformers.modeling_utils", REPORT.format("UNEXPECTED\na.c | MISMATCH")),
        ("bitsandbytes.backends.cpu.ops", "something else"),
    ]
    with quiet():
        for name, message in said:
            logging.getLogger(name).warning(message)
        with pytest.warns(FutureWarning, match="other"):
            warnings.warn("other", FutureWarning, stacklevel=1)
    assert heard == [message for _, message in said]


def _configuration():
    return (
        {name: list(logging.getLogger(name).filters) for name in LINES},
        list(warnings.filters),
        os.environ.get(FORKS),
        sys.modules["transformers.utils.logging"]._tqdm_hook,
    )


def test_nothing_stays_changed_whichever_thread_ends_first():
    from transformers.utils import logging as _  # noqa: F401

    before = _configuration()
    entered, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def stay(event):
        with quiet():
            entered.wait(60)
            event.wait(60)

    threads = [threading.Thread(target=stay, args=[event]) for event in leave]
    for thread in threads:
        thread.start()
    entered.wait(60)
    inside = _configuration()
    assert inside != before
    leave[0].set()
    threads[0].join(60)
    assert _configuration() == inside
    leave[1].set()
    threads[1].join(60)
    assert _configuration() == before

    @quiet()
    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _configuration() == before


def test_bars_of_reading_weights_are_hidden_and_others_are_not(capsys):
    from transformers.utils import logging as of_transformers

    with quiet():
        list(of_transformers.tqdm([1], desc="Loading weights"))
        assert capsys.readouterr().err == ""
        list(of_transformers.tqdm([1], desc="Downloading"))
    assert "Downloading" in capsys.readouterr().err


def test_bars_of_what_is_imported_inside_are_hidden(monkeypatch, capsys):
    from transformers.utils import logging as of_transformers

    name = "transformers.utils.logging"
    monkeypatch.delitem(sys.modules, name)
    before = of_transformers._tqdm_hook
    with quiet():
        with quiet():  # As an import of lazy() is.
            monkeypatch.setitem(sys.modules, name, of_transformers)
        list(of_transformers.tqdm([1], desc="Loading weights"))
    assert capsys.readouterr().err == ""
    assert of_transformers._tqdm_hook is before


def test_importing_changes_no_configuration():
    code = (
        "import logging, sys, warnings\n"
        "before = list(warnings.filters), list(logging.root.manager.loggerDict)\n"
        "import llava_forgery\n"
        "assert (list(warnings.filters), list(logging.root.manager.loggerDict)) == before\n"
        "from llava_forgery import ForgeryPredictor\n"
        "from llava_forgery.noise import LINES, WARNINGS\n"
        "assert not any(logging.getLogger(name).filters for name in LINES)\n"
        "assert not any(filter[2] is FutureWarning and filter[1] and 'activation' in "
        "filter[1].pattern for filter in warnings.filters)\n"
        "assert not logging.root.handlers\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
