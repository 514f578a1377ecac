"""Samples and their annotations: `/functions/{function}/samples`.

Mounted by `__init__.py`, asks `lessons` through `host.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...errors import BadRequest
from ...host import Host
from ...lessons import Draft, Lessons, Mark, Profile, Sample, Wanted, ids
from ...payload import read_json
from . import inputs, queries
from .functions import AT, LIMIT, checked_name
from .reach import Reach, told

SAMPLES = f"{AT}/samples"
ONE = f"{SAMPLES}/{{sample}}"
MOST_IDS = 1000  # of samples that one list may ask for by id


class Annotation(msgspec.Struct, frozen=True):
    """What a sample is said to be; `present` is for tags."""

    labelName: str | None = None
    labelId: str | None = None
    present: bool = True


class SampleSet(msgspec.Struct, frozen=True):
    """A set that a sample is in."""

    sampleSetId: str


class NewSample(msgspec.Struct, frozen=True):
    """A sample as it is sent; the SDK sends nulls."""

    data: Any = None
    externalId: str | None = None
    annotation: Annotation | list[Annotation] | None = None
    metadata: dict[str, Any] | None = None
    sampleSets: list[SampleSet] | None = None


class Samples:
    """The endpoints."""

    def __init__(self, host: Host, reach: Reach) -> None:
        self._host = host
        self._reach = reach

    @property
    def _lessons(self) -> Lessons:
        return self._host.training.lessons

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        return [
            Route(SAMPLES, self._list, methods=["GET"]),
            Route(SAMPLES, self._add, methods=["POST"]),
            Route(SAMPLES, self._remove_external, methods=["DELETE"]),
            Route(ONE, self._show, methods=["GET"]),
            Route(ONE, self._remove, methods=["DELETE"]),
            Route(f"{ONE}/annotation", self._annotate, methods=["PUT"]),
            Route(f"{ONE}/annotation", self._clear, methods=["DELETE"]),
        ]

    async def _list(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "read")
        wanted = _wanted(request.query_params)
        page = await self._lessons.list_samples(function, wanted)
        headers = None
        if page.next is not None:
            headers = queries.link(request, {"startIndex": page.next, "upTo": page.up_to})
        return told([_shown(sample, profile) for sample in page.samples], headers)

    async def _add(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "deploy")
        sent = await read_json(request, NewSample, function.settings.max_body)
        if sent.data is None:
            raise BadRequest("`data` is missing")
        inputs.check_external_id(sent.externalId)
        marks = _marks(sent.annotation, profile)
        if profile.input == "Tabular":  # a field that was made a moment ago counts
            profile = await self._lessons.profile_now(function)
        data = inputs.check(profile, sent.data, strict=True)
        assert data.kept is not None
        draft = Draft(
            ids.sample_id(function.id, data.kept.encode()), data.kept, sent.externalId,
            inputs.metadata_text(sent.metadata), marks, tuple(one.sampleSetId for one in sent.sampleSets or ()),
        )  # fmt: skip
        return told(_shown(await self._lessons.add_sample(function, draft, tags=profile.is_tags), profile))

    async def _show(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "read")
        id = await self._named(request)
        return told(_shown(await self._lessons.sample(function, id), profile))

    async def _remove(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "deploy")
        await self._lessons.remove_sample(function, await self._named(request))
        return told({})

    async def _remove_external(self, request: Request) -> Response:
        function, _ = await self._reach.function(request, "deploy")
        external_id = queries.text(request.query_params, "externalId")
        if external_id is None:
            raise BadRequest("say which sample: /samples/{id}, or /samples?externalId=…")
        await self._host.training.captures.flush_everywhere()
        await self._lessons.remove_external(function, external_id)
        return told({})

    async def _annotate(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "deploy")
        sent = await read_json(request, Annotation | list[Annotation], LIMIT)  # type: ignore[arg-type]
        marks = _marks(sent, profile)
        sample = await self._lessons.annotate(function, await self._named(request), marks, tags=profile.is_tags)
        return told(_annotation(sample, profile))

    async def _clear(self, request: Request) -> Response:
        function, profile = await self._reach.function(request, "deploy")
        await self._lessons.annotate(function, await self._named(request), (), tags=profile.is_tags)
        return told({})

    async def _named(self, request: Request) -> str:
        """The id in the address. Its invocation may have been a moment ago, and not be noted yet."""
        await self._host.training.captures.flush_everywhere()
        id: str = request.path_params["sample"]
        return id


def _marks(sent: Annotation | list[Annotation] | None, profile: Profile) -> tuple[Mark, ...]:
    """What an annotation says; BadRequest where it is not of the function's kind."""
    if sent is None:
        return ()
    if isinstance(sent, list) != profile.is_tags:
        wanted = "a list of objects" if profile.is_tags else "one object"
        raise BadRequest(f"the annotation must be {wanted} with `labelName` or `labelId`: this is {profile.output}")
    return tuple(map(_mark, sent)) if isinstance(sent, list) else (msgspec.structs.replace(_mark(sent), present=True),)


def _mark(sent: Annotation) -> Mark:
    if sent.labelId:
        return Mark(id=sent.labelId, present=sent.present)
    if not sent.labelName:
        raise BadRequest("the annotation has neither `labelName` nor `labelId`")
    return Mark(name=checked_name(sent.labelName), present=sent.present)


def _wanted(query: QueryParams) -> Wanted:
    """Which samples a list asks for. What is not known here does not matter."""
    start, count = queries.bounds(query)
    given = [*query.getlist("sampleIds"), *query.getlist("sampleIds[]")]
    chosen = tuple(ids.full("sample", id) for text in given for id in text.split(",") if id)
    if len(chosen) > MOST_IDS:
        raise BadRequest(f"sampleIds may name {MOST_IDS} samples")
    order = query.get("sortOrder", "").lower()
    if order not in ("", "ascending", "descending"):
        raise BadRequest("sortOrder must be ascending or descending")
    labels = [queries.text(query, name) for name in ("annotationLabelId", "predictionLabelId")]
    annotation, prediction = (ids.full("label", label) if label else None for label in labels)
    return Wanted(
        external_id=queries.text(query, "externalId"),
        annotated=queries.optional_flag(query, "annotated"),
        predicted=queries.optional_flag(query, "predicted"),
        annotation_label=annotation,
        prediction_label=prediction,
        agree=queries.optional_flag(query, "predictionAndAnnotationAgree"),
        origin=queries.text(query, "origin"),
        text=queries.text(query, "searchText"),
        ids=chosen,
        sample_set=queries.text(query, "sampleSetId"),
        since=queries.moment(query, "createdAfter"),
        until=queries.moment(query, "createdBefore"),
        newest_first=order == "descending",
        start=start,
        count=count,
        up_to=queries.number(query, "upTo", 0),
        with_data=queries.flag(query, "includeData", True),
    )


def _shown(sample: Sample, profile: Profile) -> dict[str, Any]:
    """A sample without what it does not have: the SDK takes a null for something."""
    shown: dict[str, Any] = {"id": sample.id}
    if sample.data is not None:
        shown["data"] = msgspec.Raw(sample.data.encode())
    if sample.external_id is not None:
        shown["externalId"] = sample.external_id
    if sample.annotation:
        shown["annotation"] = _annotation(sample, profile)
    if sample.prediction:
        guesses = [{"labelId": label, "confidence": confidence} for label, confidence in sample.prediction]
        shown["prediction"] = guesses if profile.is_tags else guesses[0]
    if sample.metadata is not None:
        shown["metadata"] = msgspec.Raw(sample.metadata.encode())
    if sample.sets:
        shown["sampleSets"] = [{"sampleSetId": one} for one in sample.sets]
    return shown


def _annotation(sample: Sample, profile: Profile) -> Any:
    if profile.is_tags:
        return [{"labelId": label, "present": present} for label, present in sample.annotation]
    return {"labelId": sample.annotation[0][0]} if sample.annotation else {}
