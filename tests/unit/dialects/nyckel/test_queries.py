"""What a query asks for: flags and numbers as real clients send them, and where the next page is."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams
from starlette.requests import Request

from runtime.dialects.nyckel import queries
from runtime.errors import BadRequest


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("TRUE", True), ("1", True), ("False", False), ("0", False), ("", True)]
)
def test_flags_are_read_leniently(text: str, expected: bool) -> None:
    assert queries.flag(QueryParams({"capture": text}), "capture", True) is expected


@pytest.mark.parametrize("text", ["yes", "2", "-1", "null"])
def test_other_flags_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="capture must be true or false"):
        queries.flag(QueryParams({"capture": text}), "capture", True)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "1e3", "9999999999", "١"])
def test_numbers_are_whole_and_positive(text: str) -> None:
    with pytest.raises(BadRequest, match="labelCount"):
        queries.number(QueryParams({"labelCount": text}), "labelCount", 1)


def test_absent_is_absent() -> None:
    assert queries.number(QueryParams({"labelCount": ""}), "labelCount", 1) is None
    assert queries.text(QueryParams({"modelId": ""}), "modelId") is None
    assert queries.moment(QueryParams({}), "createdAfter") is None


def test_times_are_iso() -> None:
    for text in ("1970-01-01T00:01:00Z", "1970-01-01T00:01:00", "1970-01-01T01:01:00+01:00"):
        assert queries.moment(QueryParams({"createdAfter": text}), "createdAfter") == 60.0
    with pytest.raises(BadRequest, match="createdAfter"):
        queries.moment(QueryParams({"createdAfter": "yesterday"}), "createdAfter")


def test_a_page_is_bounded() -> None:
    assert queries.bounds(QueryParams("batchSize=100000")) == (0, 1000)
    assert queries.bounds(QueryParams("startIndex=3&count=2&batchSize=5")) == (3, 2)


@pytest.mark.parametrize("mount", ["", "/nyckel.com"])
def test_the_next_page_is_a_path_without_the_mount(mount: str) -> None:
    scope = {
        "type": "http", "path": f"{mount}/v1/functions/f/samples", "headers": [],
        "query_string": b"batchSize=2&sortBy=creation&startIndex=2&searchText=a%2Cb%3E",
    }  # fmt: skip
    found = queries.link(Request(scope), {"startIndex": 4})
    expected = "/v1/functions/f/samples?batchSize=2&sortBy=creation&searchText=a%2Cb%3E&startIndex=4"
    assert found == {"Link": f'<{expected}>; rel="next"'}
