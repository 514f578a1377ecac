"""`POST /v1/functions/{function}/invoke`: ask a function for its label.

Mounted by `__init__.py`, asks `host.py`. The call is submitted and waited for, so it is among `spaces calls`; what was
asked and answered becomes a sample afterwards.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from ... import answers
from ...calls import Outcome, Status, Submission
from ...errors import BadRequest, CallerError, Draining, FunctionError, FunctionTimeout, HostError
from ...host import Host
from ...lessons import Captured, Draft, ids
from ...lessons.samples import CAPTURED
from ...lessons.vocabulary import MOST_LEARNED
from ...payload import json_call
from ...training import check_installed
from . import inputs, queries, verdicts
from .inputs import Data, InvokeInput
from .reach import Reach, Subject, told
from .verdicts import Verdict

METADATA = b"nyckel-metadata"
PASSED = (400, 402, 413, 415, 429, 503)  # a function's own statuses that clients know; others become 400 and 500


class Late(FunctionTimeout):
    """The function did not answer in time."""

    status = 503


class Wishes(msgspec.Struct, frozen=True):
    """What the query asks for."""

    count: int | None
    metadata: bool
    model: str | None
    capture: bool
    external_id: str | None


class Invoke:
    """The endpoint.

    Guarantee: it answers within the function's `timeout` and `load_timeout`. A client that leaves does not stop the
    call.
    """

    def __init__(self, host: Host, reach: Reach) -> None:
        self._host = host
        self._reach = reach

    async def answer(self, request: Request) -> Response:
        """Ask once."""
        subject = await self._reach.function(request, "invoke")
        wishes = _wishes(request.query_params)
        asked = await inputs.read_invocation(request, *subject)
        external_id = _external_id(wishes, asked)
        data = inputs.check(subject.profile, asked.data, strict=False)
        metadata = inputs.metadata_text(asked.metadata)
        if subject.profile.created:
            check_installed()
        outcome = await self._run(request, subject, wishes, asked, data)
        verdict = verdicts.read(_value(outcome), subject.profile)
        draft = _draft(subject, data, external_id, metadata) if wishes.capture else None
        kept = self._keep(subject, draft, verdict)
        return told(_answer(verdict, subject, wishes, external_id, draft.id if draft and kept else None))

    async def _run(self, request: Request, subject: Subject, wishes: Wishes, asked: InvokeInput, data: Data) -> Outcome:
        function, profile = subject
        settings = function.settings
        headers = ((METADATA, json.dumps(asked.metadata).encode()),) if asked.metadata else ()
        # Said with each call, because the function's file may not be loaded anew yet.
        model = wishes.model or (profile.model if profile.created else "")
        call = json_call(
            self._host.ids.next(), request, function, msgspec.json.encode(data.given),
            query=urlencode({"modelId": model}).encode() if model else b"", headers=headers, timeout=settings.timeout,
        )  # fmt: skip
        receipt = await self._host.submit(Submission(call, trigger="nyckel"))
        entry = await self._host.wait(receipt.id, settings.timeout + settings.load_timeout)
        if entry is None or not entry.status.is_final:
            if self._host.stopping:
                raise Draining
            await self._host.cancel(receipt.id)
            raise Late
        outcome = await self._host.journal.outcome(receipt.id)
        if outcome is None or entry.status is Status.CANCELLED:
            raise Late("the call was cancelled")
        return outcome

    def _keep(self, subject: Subject, draft: Draft | None, verdict: Verdict) -> bool:
        """Have the invocation noted after the answer; whether there will be a sample of it."""
        function, profile = subject
        room = 0 if profile.created else max(0, MOST_LEARNED - len(profile.labels))
        names = tuple(name for name, _ in verdict if name not in profile.by_name)[:room]
        if draft is None and not names:
            return False
        prediction = verdicts.present(verdict) if profile.is_tags else verdict[:1]
        captured = Captured(function, draft, prediction, names, profile.created)
        return self._host.training.captures.put(captured) and draft is not None


def _wishes(query: QueryParams) -> Wishes:
    return Wishes(
        count=queries.number(query, "labelCount", 1),
        metadata=queries.flag(query, "includeMetadata", False),
        model=queries.text(query, "modelId"),
        capture=queries.flag(query, "capture", True),
        external_id=queries.text(query, "externalId"),
    )


def _external_id(wishes: Wishes, asked: InvokeInput) -> str | None:
    inputs.check_external_id(wishes.external_id)
    if None not in (wishes.external_id, asked.externalId) and wishes.external_id != asked.externalId:
        raise BadRequest("externalId is in the query and in the body, and they differ")
    return wishes.external_id or asked.externalId


def _value(outcome: Outcome) -> bytes:
    """What the function returned; an error where it did not."""
    answer = answers.read(outcome)
    if answer.ok:
        return answer.value
    code = outcome.code
    if not outcome.invoked and code in (502, 504):
        code = 503
    elif code not in PASSED:
        code = 400 if code < 500 else 500
    failure: HostError = CallerError(answer.message) if code < 500 else FunctionError(answer.message)
    failure.status = code
    raise failure


def _draft(subject: Subject, data: Data, external_id: str | None, metadata: str | None) -> Draft | None:
    if data.kept is None or not subject.function.settings.capture:
        return None
    id = ids.sample_id(subject.function.id, data.kept.encode())
    return Draft(id, data.kept, external_id, metadata, origin=CAPTURED)


def _answer(
    verdict: Verdict, subject: Subject, wishes: Wishes, external_id: str | None, sample: str | None
) -> dict[str, Any] | list[dict[str, Any]]:
    profile = subject.profile
    if profile.is_tags:
        return verdicts.tags(verdict, profile, wishes.count, wishes.metadata)
    if not verdict:
        raise BadRequest("not trained yet: none of the labels that the model knows is there any more")
    found = verdicts.classification(verdict, profile, wishes.count, wishes.metadata)
    if external_id is not None:
        found["externalId"] = external_id
    if sample is not None:
        found["sampleId"] = sample
    return found
