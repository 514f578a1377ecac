"""The error tree: each class says what it is, has a status and a code, and is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from runtime import errors
from runtime.errors import ConfigError, FunctionRefused, HostError

GROUPS = {"HostError", "CallerError", "CapacityError", "FunctionError", "WorkerError"}


def tree(root: type[HostError] = HostError, depth: int = 0) -> Iterator[tuple[int, type[HostError]]]:
    """Every class below `root`, with how deep it is, in the order of their definitions."""
    yield depth, root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child, depth + 1)


CLASSES = [each for _, each in tree()]
DRAWN = re.compile(r"^( {4}[ │├└─]*)([A-Z]\w+)(?: {2,}(?:(\d{3})$|\S.*))?", re.MULTILINE)


def made(error: type[HostError], *message: str) -> HostError:
    if issubclass(error, FunctionRefused):
        return error(422, "invalid_data", message[0] if message else "", {})
    return error(*message)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_docstring_is_the_message_unless_there_is_one(error: type[HostError]) -> None:
    """One line, a sentence."""
    text = error.__doc__ or ""

    assert re.fullmatch(r"[A-Z`][^\n]+\.", text)
    assert (made(error).message, str(made(error))) == (text, text)
    assert (made(error, "it").message, str(made(error, "it"))) == ("it", "it")


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_each_has_a_status_and_a_code(error: type[HostError]) -> None:
    """A status of an error, a code for programs, and whether the same call may be tried again."""
    one = made(error)

    assert 400 <= one.status <= 599
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", one.code)
    assert isinstance(one.retryable, bool)


def test_no_two_answers_have_the_same_code() -> None:
    """A program can tell them apart; a subclass that adds nothing but its name is the group's usual case."""
    codes: dict[str, list[str]] = {}
    for error in CLASSES:
        codes.setdefault(error.code, []).append(error.__name__)
    shared = {code: names for code, names in codes.items() if len(names) > 1}

    assert shared == {"bad_request": ["CallerError", "BadRequest"], "internal_error": ["HostError", "FunctionRefused"]}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class at its place, in order, with its status; nothing else."""
    drawn = [(len(lead) // 4 - 1, name, status) for lead, name, status in DRAWN.findall(errors.__doc__ or "")]
    groups = GROUPS | {"ConfigError", "FunctionRefused"}
    real = [(depth, each.__name__, "" if each.__name__ in groups else str(each.status)) for depth, each in tree()]

    assert drawn == real


def test_a_refusal_may_have_the_statuses_that_are_drawn() -> None:
    """They are the worker's to choose."""
    (line,) = re.findall(r"FunctionRefused .*: ([\d, ]+)$", errors.__doc__ or "", re.MULTILINE)
    statuses = [int(status) for status in line.split(",")]

    assert statuses == [400, 413, 415, 422]
    for status in statuses:
        assert FunctionRefused(status, "code", "message", {"field": "x"}).status == status
    assert FunctionRefused.status == 500


def test_details_and_headers_are_copies() -> None:
    """Who adds to them changes this error alone."""
    details, headers = {"a": 1}, {"Allow": "GET"}
    error = HostError("it", details=details, headers=headers)
    error.details["b"] = 2
    error.headers["c"] = "3"

    assert (details, headers) == ({"a": 1}, {"Allow": "GET"})
    assert (HostError().details, HostError().headers) == ({}, {})


def test_what_may_be_tried_again() -> None:
    """What is over soon by itself; not what would fail, or might run, twice."""
    assert {each.__name__ for each in CLASSES if made(each).retryable} == {
        "CapacityError", "Overloaded", "NoFreeWorker", "IssuerUnreachable", "Draining", "StillLoading", "WorkerError",
        "StartFailed", "JournalError", "RecordsError",
    }  # fmt: skip


def test_a_load_that_its_file_is_not_to_blame_for_may_be_tried_again() -> None:
    """Of all errors with one code, these alone."""
    killed = errors.LoadFailed("killed", details={"line": 1}, retryable=True)

    assert (killed.retryable, killed.code, killed.details) == (True, "load_failed", {"line": 1})
    assert not errors.LoadFailed().retryable


def test_a_configuration_error_is_no_answer() -> None:
    """It is raised before there is anybody to answer."""
    assert not issubclass(ConfigError, tuple(each for each in CLASSES if each not in (HostError, ConfigError)))
