"""AWS Lambda's convention: `lambda_handler(event, context)` behind an HTTP API, payload format 2.0.

Asked by `handler.load`. The event is what API Gateway makes of a request; what the handler returns is
answered as API Gateway would.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from os import sysconf
from time import gmtime, strftime, time
from types import ModuleType, SimpleNamespace
from typing import Any

from .. import jsons
from ..context import CallInfo
from ..faults import NotEncodable, Refused
from ..handler import LoadError, kind_of
from ..head import JSON, NONE_GIVEN, Answer, headers_of, status_of, whole
from ..multi import MultiDict
from ..streams import encoded
from . import Adapted, client_of, server_of

ACCOUNT = "000000000000"
NOWHERE = "0.0.0.0"  # the address of who makes a call without a client
MIB = 1024 * 1024

_TEXTS = ("application/json", "application/xml", "application/javascript", "application/x-www-form-urlencoded")


def prepare(spec: dict[str, Any]) -> None:
    """Such a file needs nothing of the platform."""


def adapt(module: ModuleType, spec: dict[str, Any]) -> Adapted:
    """The file's `lambda_handler`."""
    handle: Callable[..., Any] | None = getattr(module, spec["target"], None)
    if not callable(handle):
        raise LoadError(f"`{spec['target']}` is no function once the file has been imported")
    limit = spec["max_response"]

    async def call(info: CallInfo) -> Answer:
        return answer(await handle(event(info), Context(info, spec)), limit)

    if kind_of(handle) == "async":
        return Adapted(handle, call)
    return Adapted(handle, lambda info: answer(handle(event(info), Context(info, spec)), limit))


def event(info: CallInfo) -> dict[str, Any]:
    """The call as API Gateway would tell of it: what a request has not got is left out, as there."""
    headers = _joined(info.headers)
    cookies = headers.pop("cookie", "")
    server, now = server_of(info)[0], time()
    found: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": info.raw_path,
        "rawQueryString": info.wire_query.decode("latin-1"),
        "headers": headers,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": info.space,
            "domainName": server,
            "domainPrefix": server.partition(".")[0],
            "http": {
                "method": info.method,
                "path": info.raw_path,
                "protocol": "HTTP/1.1",
                "sourceIp": client_of(info) or NOWHERE,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": str(info.call_id),
            "routeKey": "$default",
            "stage": "$default",
            "time": strftime("%d/%b/%Y:%H:%M:%S +0000", gmtime(now)),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies:
        found["cookies"] = [cookie.strip() for cookie in cookies.replace(",", ";").split(";") if cookie.strip()]
    if info.wire_query:
        found["queryStringParameters"] = _joined(info.query)
    if info.body:
        found["body"], found["isBase64Encoded"] = _body(info)
    return found


def _joined(values: MultiDict) -> dict[str, str]:
    return {name: ",".join(values.getlist(name)) for name in values}


def _body(info: CallInfo) -> tuple[str, bool]:
    """The body as text if it claims to be that and is, otherwise in base64."""
    media = info.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not media or media.startswith("text/") or media in _TEXTS or media.endswith(("+json", "+xml")):
        try:
            return info.text, False
        except Refused:  # it is not in the charset that it claims
            pass
    return b64encode(info.body).decode(), True


class Context:
    """What a handler gets as `context`."""

    function_version = "$LATEST"
    client_context = None

    def __init__(self, info: CallInfo, spec: dict[str, Any]) -> None:
        memory = spec["memory"] or sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")
        self.aws_request_id = str(info.call_id)
        self.function_name: str = spec["name"]
        self.invoked_function_arn = f"arn:aws:lambda:local:{ACCOUNT}:function:{spec['name']}"
        self.memory_limit_in_mb = str(memory // MIB)  # text, as there
        self.log_group_name = f"/aws/lambda/{spec['name']}"
        self.log_stream_name = f"{spec['space']}/[$LATEST]"
        self.identity = SimpleNamespace(cognito_identity_id=None, cognito_identity_pool_id=None)
        self._deadline = info.deadline

    def get_remaining_time_in_millis(self) -> int:
        """For how long the call may still run."""
        return max(0, int((self._deadline - time()) * 1000))


def answer(value: Any, limit: int) -> Answer:
    """What API Gateway makes of a result: with a `statusCode` the answer it describes, otherwise the body of a 200."""
    if not isinstance(value, Mapping) or "statusCode" not in value:
        return whole(200, NONE_GIVEN, JSON, encoded(value) if isinstance(value, str) else jsons.dumps(value), limit)
    multiple = _header_pairs(value, "multiValueHeaders")
    repeated = {str(name).lower() for name, _ in multiple}
    pairs = [pair for pair in _header_pairs(value, "headers") if str(pair[0]).lower() not in repeated]
    cookies = [("set-cookie", cookie) for cookie in _several(value.get("cookies") or ())]
    body = _encoded_body(value.get("body"), base64=bool(value.get("isBase64Encoded")))
    return whole(status_of(value["statusCode"]), headers_of(pairs + multiple + cookies), JSON, body, limit)


def _header_pairs(value: Mapping[Any, Any], key: str) -> list[tuple[Any, Any]]:
    given = value.get(key) or {}
    if not isinstance(given, Mapping):
        raise NotEncodable(f"the function returned {jsons.describe(given)} as {key}; it takes a dict")
    return [(name, _header_value(each)) for name, values in given.items() for each in _several(values)]


def _header_value(value: Any) -> Any:
    """API Gateway takes booleans and numbers, as in `"Access-Control-Allow-Credentials": True`."""
    return jsons.dumps(value).decode() if isinstance(value, (bool, float)) else value


def _several(values: Any) -> Any:
    return values if isinstance(values, (list, tuple)) else (values,)


def _encoded_body(body: Any, *, base64: bool) -> bytes:
    if body is None:
        return b""
    if not isinstance(body, str):
        return jsons.dumps(body)
    if not base64:
        return encoded(body)
    try:
        return b64decode(body, validate=True)
    except (Base64Error, ValueError):
        raise NotEncodable("the function returned a body that is not base64, with isBase64Encoded") from None
