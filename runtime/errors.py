"""The error tree: everything the host can refuse or fail with, and the HTTP status of each.

Raised everywhere, caught once in `app.py`, which asks the dialect that owns the route to word it.

    HostError
    ├── CallerError          the request is at fault
    │   ├── BadRequest             400
    │   ├── Unauthorized           401
    │   │   └── InvalidClient      401
    │   ├── Forbidden              403
    │   ├── NotFound               404
    │   ├── MethodNotAllowed       405
    │   ├── Conflict               409
    │   ├── BodyTooSlow            408
    │   ├── BodyTooLarge           413
    │   ├── Unprocessable          422
    │   │   └── KeyReused          422
    │   └── HeadTooLarge           431
    ├── CapacityError        not now, try again
    │   ├── Overloaded             429
    │   ├── NoFreeWorker           503
    │   ├── IssuerUnreachable      503
    │   └── Draining               503
    ├── FunctionError        the handler file or its code is at fault
    │   ├── LoadFailed             503
    │   ├── StillLoading           503
    │   └── FunctionTimeout        504
    ├── FunctionRefused      the worker found the data unfit: 400, 413, 415, 422
    ├── WorkerError          the process is at fault
    │   ├── StartFailed            503
    │   ├── WorkerDied             502
    │   ├── ProtocolViolation      502
    │   └── Interrupted            503
    ├── Cancelled                409
    ├── JournalError             503
    ├── RecordsError             503
    └── ConfigError          refused at start

A class's docstring is its default message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class HostError(Exception):
    """Something in the host went wrong."""

    status: int = 500
    code: str = "internal_error"
    retryable: bool = False

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0]
        self.details = dict(details or {})
        self.headers = dict(headers or {})
        super().__init__(self.message)


class CallerError(HostError):
    """The request cannot be served as it is."""

    status = 400
    code = "bad_request"


class BadRequest(CallerError):
    """The request is malformed."""


class Unauthorized(CallerError):
    """No token provided."""

    status = 401
    code = "unauthorized"


class InvalidClient(Unauthorized):
    """There is no client with this id and this secret."""

    code = "invalid_client"


class Forbidden(CallerError):
    """Unauthorized: the token is valid, and not for this."""

    status = 403
    code = "forbidden"


class NotFound(CallerError):
    """There is nothing at this address."""

    status = 404
    code = "not_found"


class MethodNotAllowed(CallerError):
    """The method is not allowed here."""

    status = 405
    code = "method_not_allowed"


class Conflict(CallerError):
    """The call is in a state in which this cannot be done."""

    status = 409
    code = "conflict"


class BodyTooSlow(CallerError):
    """The request body did not come."""

    status = 408
    code = "body_too_slow"


class BodyTooLarge(CallerError):
    """The request body is larger than the function's `max_body`."""

    status = 413
    code = "body_too_large"


class Unprocessable(CallerError):
    """The data does not fit what the function takes."""

    status = 422
    code = "invalid_data"


class KeyReused(Unprocessable):
    """The Idempotency-Key was used for another request."""

    code = "idempotency_key_reused"


class HeadTooLarge(CallerError):
    """The request's path, query and headers are too long."""

    status = 431
    code = "head_too_large"


class CapacityError(HostError):
    """No capacity for this call now."""

    status = 503
    code = "no_capacity"
    retryable = True


class Overloaded(CapacityError):
    """Too many calls are waiting for this function."""

    status = 429
    code = "overloaded"


class NoFreeWorker(CapacityError):
    """No worker became free before the call's deadline."""

    code = "no_free_worker"


class IssuerUnreachable(CapacityError):
    """The issuer of this token cannot be asked for its keys now."""

    code = "issuer_unreachable"


class Draining(CapacityError):
    """The host is shutting down."""

    code = "draining"


class FunctionError(HostError):
    """The function failed."""

    code = "function_error"


class LoadFailed(FunctionError):
    """The handler file could not be imported."""

    status = 503
    code = "load_failed"

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        retryable: bool = False,
    ) -> None:
        """`retryable`: the file is not at fault, but that its process could not be started, or was killed."""
        super().__init__(message, details=details, headers=headers)
        self.retryable = retryable


class StillLoading(FunctionError):
    """The function was still being imported at the call's deadline."""

    status = 503
    code = "still_loading"
    retryable = True


class FunctionTimeout(FunctionError):
    """The function did not answer before its deadline."""

    status = 504
    code = "timeout"


class FunctionRefused(HostError):
    """The call's data could not be given to the handler."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message, details=details)
        self.status, self.code = status, code


class WorkerError(HostError):
    """The function's process failed."""

    status = 502
    code = "worker_error"
    retryable = True


class StartFailed(WorkerError):
    """No worker process could be started for the function."""

    status = 503
    code = "start_failed"


class WorkerDied(WorkerError):
    """The function's process ended in the middle of the call."""

    code = "worker_died"
    retryable = False


class ProtocolViolation(WorkerError):
    """The function's process broke the wire protocol and was ended."""

    code = "protocol_violation"
    retryable = False


class Interrupted(WorkerError):
    """The host ended while the call was running."""

    status = 503
    code = "interrupted"
    retryable = False


class Cancelled(HostError):
    """The call was cancelled."""

    status = 409
    code = "cancelled"


class JournalError(HostError):
    """The journal, the durable record of calls, cannot be used now."""

    status = 503
    code = "journal_error"
    retryable = True


class RecordsError(HostError):
    """What was created through the API cannot be read or written now."""

    status = 503
    code = "records_error"
    retryable = True


class ConfigError(HostError):
    """The configuration is wrong."""

    code = "config_error"


def envelope(error: HostError, *, debug: bool = False) -> bytes:
    """An error as JSON for a client: `{"error": {status, code, message, details}}`; tracebacks in debug only."""
    details = {key: value for key, value in error.details.items() if debug or key != "traceback"}
    worded: dict[str, Any] = {"status": error.status, "code": error.code, "message": error.message}
    if details:
        worded["details"] = details
    return msgspec.json.encode({"error": worded}, enc_hook=str)
