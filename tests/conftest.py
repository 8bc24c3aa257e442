"""Makes the helpers of this folder importable from the tests below it; one thread per process, as torchrun has it."""

import os

import pytest

_STARTED = pytest.StashKey()

# On small tensors a second thread only waits, and beside other processes it waits long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Put what waits for a background command last; see background.py."""
    items.sort(key=lambda item: _background(item) is not None)


def pytest_collection_finish(session):
    """Start the background commands of the tests that were chosen."""
    if not session.config.option.collectonly:
        session.config.stash[_STARTED] = {_background(item) for item in session.items} - {None}
        for each in session.config.stash[_STARTED]:
            each.start()


def pytest_sessionfinish(session):
    """End them."""
    for each in session.config.stash.get(_STARTED, ()):
        each.end()


def _background(item):
    return getattr(getattr(item, "module", None), "BACKGROUND", None)
