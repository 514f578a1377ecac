"""Lambda: the event that a call becomes, the context, and what is made of every form of result."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.worker.conventions.aws_lambda import Context, answer, event
from runtime.worker.faults import NotEncodable, TooLarge
from runtime.worker.handler import LoadError
from tests.unit.worker.conventions.imported import SPEC, call, loaded, shown

JSON = ("content-type", "application/json")


def test_the_event_is_that_of_payload_format_2() -> None:
    """Names in lower case, what is repeated joined by commas, cookies apart."""
    headers = {"host": "api.shop.test:8000", "user-agent": "curl", "cookie": "a=1; b=2",
               "x-forwarded-for": "1.1.1.1, 2.2.2.2", "content-type": "application/json"}  # fmt: skip
    found = event(call(b'{"x":1}', b"/my%20path", b"a=1&a=2&b=", headers, "PUT"))
    context = found.pop("requestContext")
    assert isinstance(context.pop("timeEpoch"), int)
    assert context.pop("time").endswith(" +0000")
    assert context == {
        "accountId": "000000000000",
        "apiId": "shop",
        "domainName": "api.shop.test",
        "domainPrefix": "api",
        "http": {
            "method": "PUT",
            "path": "/my%20path",
            "protocol": "HTTP/1.1",
            "sourceIp": "2.2.2.2",
            "userAgent": "curl",
        },
        "requestId": "7",
        "routeKey": "$default",
        "stage": "$default",
    }
    del headers["cookie"]
    assert found.pop("headers") == {**headers, "content-length": "7"}
    assert found == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/my%20path",
        "rawQueryString": "a=1&a=2&b=",
        "queryStringParameters": {"a": "1,2", "b": ""},
        "cookies": ["a=1", "b=2"],
        "body": '{"x":1}',
        "isBase64Encoded": False,
    }


def test_what_a_request_has_not_got_is_left_out() -> None:
    """As API Gateway does; and a call without a client has no address."""
    found = event(call())
    assert not {"body", "cookies", "queryStringParameters"} & found.keys()
    assert (found["rawPath"], found["requestContext"]["http"]["sourceIp"]) == ("/", "0.0.0.0")


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"text", "", ("text", False)),
        (b"a=1", "application/x-www-form-urlencoded", ("a=1", False)),
        ("é".encode("latin-1"), "text/plain; charset=latin-1", ("é", False)),
        (b"<a/>", "image/svg+xml", ("<a/>", False)),
        (b"\xff\0", "text/plain", ("/wA=", True)),
        (b"text", "image/png", ("dGV4dA==", True)),
        (b"text", "text/plain; charset=none-such", ("dGV4dA==", True)),
    ],
)
def test_text_is_text_and_all_else_base64(body: bytes, content_type: str, expected: tuple[str, bool]) -> None:
    """By the content type, and by whether it is what that says."""
    found = event(call(body, headers={"content-type": content_type} if content_type else {}))
    assert (found["body"], found["isBase64Encoded"]) == expected


def test_the_context() -> None:
    """Its names are Lambda's."""
    context = Context(call(), {**SPEC, "name": "orders"})
    assert (context.aws_request_id, context.function_name, context.memory_limit_in_mb) == ("7", "orders", "64")
    assert context.function_version == "$LATEST"
    assert context.invoked_function_arn.endswith(":function:orders")
    assert context.get_remaining_time_in_millis() > 0
    assert context.identity.cognito_identity_id is None
    assert int(Context(call(), {**SPEC, "memory": None}).memory_limit_in_mb) > 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, (200, [JSON], {"a": 1})),
        ({"body": "x"}, (200, [JSON], {"body": "x"})),
        ([1, None], (200, [JSON], [1, None])),
        (None, (200, [JSON], None)),
        ('{"a":1}', (200, [JSON], {"a": 1})),
        ({"statusCode": 204}, (204, [], b"")),
        ({"statusCode": "404", "body": '"no"'}, (404, [JSON], "no")),
        ({"statusCode": 200, "body": {"a": 1}}, (200, [JSON], {"a": 1})),
        (
            {"statusCode": 200, "headers": {"Content-Type": "text/plain", "X-A": 1}, "body": "x"},
            (200, [("content-type", "text/plain"), ("x-a", "1")], b"x"),
        ),
        (
            {"statusCode": 200, "headers": {"X-A": True, "x-b": False, "x-c": 1.5}, "body": "1"},
            (200, [JSON, ("x-a", "true"), ("x-b", "false"), ("x-c", "1.5")], 1),
        ),
        (
            {"statusCode": 200, "headers": {"x-a": "0"}, "multiValueHeaders": {"X-A": ["1", "2"]}, "body": "1"},
            (200, [JSON, ("x-a", "1"), ("x-a", "2")], 1),
        ),
        (
            {"statusCode": 200, "cookies": ["a=1", "b=2"], "body": "1"},
            (200, [JSON, ("set-cookie", "a=1"), ("set-cookie", "b=2")], 1),
        ),
        (
            {"statusCode": 200, "headers": {"content-type": "a/b"}, "body": "/wA=", "isBase64Encoded": True},
            (200, [("content-type", "a/b")], b"\xff\0"),
        ),
    ],
)
def test_what_becomes_of_a_result(value: Any, expected: Any) -> None:
    """With a statusCode the answer that it describes; without one, all of it is the body."""
    assert shown(answer(value, 1000)) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"statusCode": 99},
        {"statusCode": 200, "headers": ["x"]},
        {"statusCode": 200, "headers": {"x": "a\nb"}},
        {"statusCode": 200, "body": "é", "isBase64Encoded": True},
        {"statusCode": 200, "body": object()},
        {"x": object()},
    ],
)
def test_what_is_no_answer_is_refused(value: Any) -> None:
    """Saying what is wrong with it."""
    with pytest.raises(NotEncodable):
        answer(value, 1000)


def test_a_large_answer_is_refused() -> None:
    """By the function's own limit."""
    with pytest.raises(TooLarge):
        answer("x" * 11, 10)


def test_a_handler_is_called_with_both() -> None:
    """And shown as it is written."""
    function = loaded("lambda", "lambda_handler", "def lambda_handler(event, context): return context.aws_request_id")
    assert shown(function.call(call())) == (200, [JSON], 7)
    assert (function.kind, function.describe()["takes"]) == ("sync", ["event", "context"])


def test_an_async_handler_is_awaited() -> None:
    """Lambda itself does not, but nothing else could be meant."""
    function = loaded("lambda", "lambda_handler", "async def lambda_handler(event, context): return event['rawPath']")
    assert function.kind == "async"
    assert asyncio.run(function.call(call(path=b"/x"))).body == b"/x"


def test_what_is_no_function_cannot_be_loaded() -> None:
    """Though its name is there."""
    with pytest.raises(LoadError, match="lambda_handler"):
        loaded("lambda", "lambda_handler", "lambda_handler = 1")
