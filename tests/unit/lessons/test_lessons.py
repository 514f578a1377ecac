"""Lessons in a real file: what is recorded is there at once, what cannot be changes nothing, bounds hold."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest

from runtime.calls import function_id
from runtime.config import FunctionSettings
from runtime.errors import BadRequest, Conflict, NotFound, RecordsError
from runtime.lessons import Captured, Draft, Lessons, Mark, Wanted, ids
from runtime.lessons.samples import CAPTURED
from runtime.registry import Function

pytestmark = pytest.mark.anyio


def function(name: str = "work") -> Function:
    return Function(
        id=function_id("demo", name), space="demo", name=name, path=Path("/f.py"), line=1, kind="sync", takes=(),
        digest="", settings=FunctionSettings(),
    )  # fmt: skip


WORK = function()


def draft(data: object, **fields: object) -> Draft:
    text = json.dumps(data, ensure_ascii=False)
    return msgspec.structs.replace(Draft(ids.sample_id(WORK.id, text.encode()), text), **fields)


@pytest.fixture
async def lessons(tmp_path: Path) -> AsyncIterator[Lessons]:
    found = Lessons(tmp_path / "state")
    yield found
    await found.close()


async def annotated(lessons: Lessons, data: str, *names: str, tags: bool = False) -> str:
    """A sample with these labels; its id."""
    one = draft(data, marks=tuple(Mark(name) for name in names))
    return (await lessons.add_sample(WORK, one, tags=tags)).id


async def test_what_is_read_makes_no_file(lessons: Lessons, tmp_path: Path) -> None:
    assert (await lessons.profile(WORK)).labels == ()
    assert (await lessons.counts(WORK)).samples == 0
    assert (await lessons.list_samples(WORK, Wanted())).samples == ()
    assert await lessons.projects() == []
    assert await lessons.created() == []
    assert not (tmp_path / "state").exists()


async def test_a_profile_is_of_the_settings_and_of_what_is_recorded(lessons: Lessons) -> None:
    tabular = msgspec.structs.replace(WORK, settings=FunctionSettings(input="Tabular", output="Tags"))
    label = await lessons.add_label(WORK, "Nice", None, {"a": "b"})
    field = await lessons.add_field(WORK, "age", "Number")

    profile = await lessons.profile(tabular)

    assert (profile.title, profile.input, profile.output, profile.created) == ("demo/work", "Tabular", "Tags", False)
    assert profile.labels == (label,)
    assert profile.by_id[label.id] is profile.labels[0]
    assert profile.fields == (field,)
    assert profile.fields_by_key["age"] is profile.fields_by_key[field.id.removeprefix("field_")]


async def test_a_profile_is_fresh_after_ones_own_changes(lessons: Lessons) -> None:
    await lessons.profile(WORK)
    await lessons.add_label(WORK, "Nice", None, None)

    assert [label.name for label in (await lessons.profile(WORK)).labels] == ["Nice"]


async def test_labels_have_one_name_each(lessons: Lessons) -> None:
    nice = await lessons.add_label(WORK, "Nice", "d", None)
    bad = await lessons.add_label(WORK, "Bad", None, None)

    with pytest.raises(Conflict) as refused:
        await lessons.add_label(WORK, "Nice", None, None)
    assert refused.value.details == {"id": nice.id}
    with pytest.raises(Conflict):
        await lessons.change_label(WORK, bad.id, "Nice", None, None)
    assert (await lessons.label(WORK, nice.id.removeprefix("label_"))).description == "d"
    with pytest.raises(NotFound):
        await lessons.label(WORK, "label_none")


async def test_a_renamed_label_keeps_its_id_and_is_known_by_its_former_name(lessons: Lessons) -> None:
    old = await lessons.add_label(WORK, "dog", None, None)
    await lessons.change_label(WORK, old.id, "doggo", None, None)

    assert (await lessons.profile(WORK)).by_name["dog"].name == "doggo"
    new = await lessons.add_label(WORK, "dog", None, None)
    assert new.id != old.id
    assert (await lessons.profile(WORK)).by_name["dog"].id == new.id


async def test_the_same_data_is_the_same_sample_also_at_the_same_time(lessons: Lessons) -> None:
    found: list[str] = []

    async def add() -> None:
        try:
            found.append((await lessons.add_sample(WORK, draft("hello"), tags=False)).id)
        except Conflict as refused:
            found.append(refused.details["existingSampleId"])

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(add)

    assert len(set(found)) == 1
    assert (await lessons.counts(WORK)).samples == 1


async def test_an_external_id_is_of_one_sample(lessons: Lessons) -> None:
    first = await lessons.add_sample(WORK, draft("a", external_id="1"), tags=False)

    with pytest.raises(Conflict) as refused:
        await lessons.add_sample(WORK, draft("b", external_id="1"), tags=False)
    assert refused.value.details == {"existingSampleId": first.id}
    await lessons.remove_external(WORK, "1")
    with pytest.raises(NotFound):
        await lessons.remove_external(WORK, "1")
    await lessons.add_sample(WORK, draft("b", external_id="1"), tags=False)


async def test_what_is_refused_changes_nothing(lessons: Lessons) -> None:
    with pytest.raises(BadRequest, match="label_none"):
        await lessons.add_sample(WORK, draft("a", marks=(Mark("New"), Mark(id="label_none"))), tags=True)

    assert (await lessons.counts(WORK)).samples == 0
    assert (await lessons.profile_now(WORK)).labels == ()


async def test_tags_that_are_not_mentioned_are_absent_if_they_were_there(lessons: Lessons) -> None:
    first = await annotated(lessons, "a", "one", tags=True)
    await annotated(lessons, "b", "two", tags=True)

    one, two = (label.id for label in (await lessons.profile(WORK)).labels)
    assert (await lessons.sample(WORK, first)).annotation == ((one, True),)
    sample = await lessons.annotate(WORK, first, [Mark("two")], tags=True)
    assert sample.annotation == ((two, True), (one, False))
    counts = await lessons.counts(WORK)
    assert counts.mentions == {one: 2, two: 2}
    assert counts.presences == {one: 0, two: 2}
    assert (await lessons.annotate(WORK, first, [], tags=True)).annotation == ()


async def test_with_a_label_goes_what_is_said_of_it(lessons: Lessons) -> None:
    id = await annotated(lessons, "a", "Nice")
    label = (await lessons.profile(WORK)).labels[0]
    captured = draft("b", origin=CAPTURED)
    await lessons.capture([Captured(WORK, captured, (("Nice", 0.5),))], 10, 1000)

    await lessons.remove_label(WORK, label.id)

    assert (await lessons.sample(WORK, id)).annotation == ()
    assert (await lessons.sample(WORK, captured.id)).prediction == ()


async def test_with_a_field_goes_its_value(lessons: Lessons) -> None:
    age, name = [await lessons.add_field(WORK, each, "Text") for each in ("age", "name")]
    one = draft({age.id: "3", name.id: "x"})
    await lessons.add_sample(WORK, one, tags=False)

    await lessons.remove_field(WORK, age.id)

    assert json.loads((await lessons.sample(WORK, one.id)).data or "") == {name.id: "x"}


async def test_one_image_field_is_enough(lessons: Lessons) -> None:
    await lessons.add_field(WORK, "a", "Image")
    with pytest.raises(BadRequest, match="one field of type Image"):
        await lessons.add_field(WORK, "b", "Image")
    with pytest.raises(Conflict):
        await lessons.add_field(WORK, "a", "Text")


async def test_pages_do_not_shift_when_samples_come(lessons: Lessons) -> None:
    for number in range(5):
        await lessons.add_sample(WORK, draft(f"{number}"), tags=False)
    wanted = Wanted(newest_first=True, count=2)

    page = await lessons.list_samples(WORK, wanted)
    await lessons.add_sample(WORK, draft("new"), tags=False)
    seen = [sample.data for sample in page.samples]
    while page.next is not None:
        page = await lessons.list_samples(WORK, msgspec.structs.replace(wanted, start=page.next, up_to=page.up_to))
        seen += [sample.data for sample in page.samples]

    assert seen == [f'"{number}"' for number in (4, 3, 2, 1, 0)]


async def test_a_page_of_large_data_is_short(lessons: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.lessons.samples.PAGE_BYTES", 10)
    for number in range(3):
        await lessons.add_sample(WORK, draft(f"{number}".rjust(8)), tags=False)

    page = await lessons.list_samples(WORK, Wanted())
    assert (len(page.samples), page.next) == (1, 1)
    without = await lessons.list_samples(WORK, Wanted(with_data=False))
    assert [sample.data for sample in without.samples] == [None] * 3


async def test_lists_are_filtered(lessons: Lessons) -> None:
    nice = await annotated(lessons, "Hello there", "Nice")
    await annotated(lessons, "bye", "Bad")
    other = draft("captured", external_id="7", origin=CAPTURED, sets=("s",))
    await lessons.capture([Captured(WORK, other, (("Nice", 0.5),))], 10, 1000)
    await lessons.annotate(WORK, other.id, [Mark("Bad")], tags=False)
    plain = await lessons.add_sample(WORK, draft("plain"), tags=False)
    labels = {label.name: label.id for label in (await lessons.profile(WORK)).labels}

    async def found(**fields: object) -> set[str]:
        wanted = msgspec.structs.replace(Wanted(), **fields)
        return {sample.id for sample in (await lessons.list_samples(WORK, wanted)).samples}

    assert await found(external_id="7") == await found(origin=CAPTURED) == await found(sample_set="s") == {other.id}
    assert await found(annotated=False) == {plain.id}
    assert await found(predicted=True) == await found(prediction_label=labels["Nice"]) == {other.id}
    assert await found(agree=False) == {other.id}
    assert await found(agree=True) == set()
    assert (
        await found(annotation_label=labels["Nice"]) == await found(text="hello") == await found(ids=(nice,)) == {nice}
    )
    assert await found(since=0.0, until=1.0) == set()


async def test_captures_are_kept_once_and_only_so_many(lessons: Lessons) -> None:
    kept = await annotated(lessons, "mine", "Nice")
    drafts = [draft(f"{number}", origin=CAPTURED, external_id="same") for number in range(6)]
    await lessons.capture([Captured(WORK, one, (("Nice", 0.5),)) for one in (*drafts, drafts[5])], 3, 10_000)

    found = (await lessons.list_samples(WORK, Wanted())).samples
    assert [sample.id for sample in found] == [kept, *(one.id for one in drafts[3:])]
    await lessons.capture([Captured(WORK, draft("x" * 50, origin=CAPTURED))], 10, 60)
    assert len((await lessons.list_samples(WORK, Wanted(origin=CAPTURED))).samples) == 3  # the oldest of 4 went


async def test_what_was_captured_and_annotated_stays(lessons: Lessons) -> None:
    first = draft("0", origin=CAPTURED)
    await lessons.capture([Captured(WORK, first)], 10, 10_000)
    await lessons.annotate(WORK, first.id, [Mark("Nice")], tags=False)
    await lessons.capture([Captured(WORK, draft(f"{number}", origin=CAPTURED)) for number in (1, 2)], 1, 10_000)

    assert first.id in {sample.id for sample in (await lessons.list_samples(WORK, Wanted())).samples}


async def test_nothing_is_kept_of_a_function_that_was_removed(lessons: Lessons) -> None:
    await lessons.create(WORK.id, "demo", "work", "Work", "Text", "Classification", None)
    await lessons.forget(WORK.id)
    await lessons.capture([Captured(WORK, draft("a", origin=CAPTURED), created=True)], 10, 1000)

    assert (await lessons.counts(WORK)).samples == 0


async def test_an_external_id_stays_with_the_first_sample(lessons: Lessons) -> None:
    one, two = (draft(text, origin=CAPTURED, external_id="7") for text in "ab")
    await lessons.capture([Captured(WORK, one), Captured(WORK, two)], 10, 1000)

    assert (await lessons.sample(WORK, one.id)).external_id == "7"
    assert (await lessons.sample(WORK, two.id)).external_id is None


async def test_labels_that_were_answered_are_learned_up_to_a_bound(
    lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.lessons.vocabulary.MOST_LEARNED", 3)
    await lessons.capture([Captured(WORK, None, (), tuple("abcdef"))], 10, 1000)

    labels = (await lessons.profile(WORK)).labels
    assert [label.name for label in labels] == ["a", "b", "c"]
    assert labels[0].id == ids.label_id(WORK.id, "a")


async def test_training_is_asked_for_by_what_it_depends_on(tmp_path: Path) -> None:
    told: list[int] = []
    lessons = Lessons(tmp_path, told.append)
    await lessons.create(WORK.id, "demo", "work", "Work", "Text", "Classification", None)

    async def revision() -> int:
        return (await lessons.profile_now(WORK)).revision

    try:
        before = await revision()
        id = (await lessons.add_sample(WORK, draft("plain"), tags=False)).id
        await lessons.add_label(WORK, "Nice", None, None)
        assert await revision() == before  # nothing to learn from yet
        await lessons.annotate(WORK, id, [Mark("Nice")], tags=False)
        assert await revision() == before + 1
        await lessons.remove_sample(WORK, id)
        assert await revision() == before + 2
        await lessons.settle(WORK, before + 2, "model_1", "", b'{"accuracy":1.0}')
        profile = await lessons.profile(WORK)
        assert (profile.model, profile.settled, profile.training) == ("model_1", before + 2, {"accuracy": 1.0})
        await lessons.settle(WORK, before + 2, "", "no disk", b"{}")
        profile = await lessons.profile(WORK)
        assert (profile.model, profile.problem) == ("model_1", "no disk")
        assert set(told) == {WORK.id}
        await lessons.forget(WORK.id)
        assert await lessons.created() == []
    finally:
        await lessons.close()


async def test_an_export_has_what_is_annotated(lessons: Lessons, tmp_path: Path) -> None:
    await annotated(lessons, "a", "Nice")
    await lessons.add_sample(WORK, draft("plain"), tags=False)
    file = tmp_path / "export.jsonl"

    _, count = await lessons.export(WORK, file)
    assert count == 1
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"id": draft("a").id, "data": "a", "annotation": "Nice"}
    ]
    tags = msgspec.structs.replace(WORK, settings=FunctionSettings(output="Tags"))
    await annotated(lessons, "b", "Bad", tags=True)
    await lessons.export(tags, file)
    assert json.loads(file.read_text().splitlines()[1])["annotation"] == {"Bad": True, "Nice": False}


async def test_what_another_host_does_is_seen(
    lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.lessons.FRESH", 0.0)
    other = Lessons(tmp_path / "state")
    await lessons.profile(WORK)
    await other.add_label(WORK, "Nice", None, None)

    assert [label.name for label in (await lessons.profile(WORK)).labels] == ["Nice"]
    await other.close()


async def test_a_record_that_cannot_be_read_fails_no_invocation(lessons: Lessons, tmp_path: Path) -> None:
    """What was known before counts, or the settings; of a function that was created here they say nothing."""
    await lessons.add_label(WORK, "Nice", None, None)
    known = await lessons.profile(WORK)
    await lessons.close()
    for file in (tmp_path / "state").glob("samples.db*"):
        file.write_bytes(b"no database" * 100)

    assert await lessons.profile(msgspec.structs.replace(WORK)) == known
    other = function("other")
    assert (await lessons.profile(other)).title == "demo/other"
    created = Lessons(tmp_path / "state", is_created=lambda _: True)
    with pytest.raises(RecordsError):
        await created.profile(other)
    await created.close()


async def test_what_another_host_has_learned_later_counts(lessons: Lessons) -> None:
    await lessons.create(WORK.id, "demo", "work", "Work", "Text", "Classification", None)
    await lessons.settle(WORK, 5, "model_5", "", b"{}")
    await lessons.settle(WORK, 4, "model_4", "", b"{}")
    profile = await lessons.profile(WORK)

    assert (profile.model, profile.settled) == ("model_5", 5)


@pytest.mark.parametrize("text", ['say "hi"', "a\\b", "one\ntwo", "50%", "_", "é"])
async def test_a_text_is_found_as_it_was_written(lessons: Lessons, text: str) -> None:
    wanted = await annotated(lessons, f"<{text}>", "a")
    await annotated(lessons, "something else", "a")

    found = await lessons.list_samples(WORK, Wanted(text=text))
    assert [sample.id for sample in found.samples] == [wanted]
