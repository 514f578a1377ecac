"""What is done around an import. Whether a process may be forked is tried in `tests/acceptance`, with real imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from runtime.worker.forking import CALM, calm_collector


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_the_collector_is_calm_during_an_import_alone() -> None:
    gc.set_threshold(700, 10, 10)
    with calm_collector():
        assert gc.get_threshold()[0] == CALM
    assert gc.get_threshold()[0] == 700


def test_it_is_as_before_after_an_import_that_fails() -> None:
    gc.set_threshold(700, 10, 10)
    with pytest.raises(ImportError), calm_collector():
        raise ImportError
    assert gc.get_threshold()[0] == 700


@pytest.mark.parametrize("first", [1_000, 0], ids=["often", "never"])
def test_what_an_import_sets_stays_set(first: int) -> None:
    with calm_collector():
        gc.set_threshold(first)
    assert gc.get_threshold()[0] == first


@pytest.mark.parametrize("first", [2 * CALM, 0], ids=["seldom", "never"])
def test_a_collector_that_is_calmer_already_stays_so(first: int) -> None:
    gc.set_threshold(first)
    with calm_collector():
        assert gc.get_threshold()[0] == first
    assert gc.get_threshold()[0] == first
