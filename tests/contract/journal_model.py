"""What a journal is, in plain Python: dictionaries and sorted lists, no disk, no threads.

`test_journal_histories.py` compares a store with it, step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.calls import CallbackState, Entry, Outcome, Status, Submission
from runtime.errors import KeyReused
from runtime.journal import KEY_LIFE, Counts, Receipt


@dataclass
class Record:
    """One call."""

    submission: Submission
    accepted_at: float
    run_at: float
    status: Status = Status.QUEUED
    ready: bool = False  # queued, and its time has come
    owner: object = None
    cancel: bool = False
    attempt: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    outcome: Outcome | None = None
    callback: CallbackState = CallbackState.NONE
    callback_at: float | None = None
    callback_attempts: int = 0
    callback_error: str | None = None
    deliverer: object = None
    events: list[str] = field(default_factory=lambda: ["queued"])

    @property
    def function(self) -> tuple[str, str]:
        return self.submission.call.space, self.submission.call.name

    def entry(self) -> Entry:
        call, outcome = self.submission.call, self.outcome
        return Entry(
            call.id, call.label, call.space, call.name, self.status, self.submission.trigger, self.submission.priority,
            self.submission.idempotency_key, call.schedule_id, call.scheduled_time, self.attempt, self.accepted_at,
            self.run_at, self.started_at, self.finished_at, outcome and outcome.code, outcome and outcome.error_code,
            outcome and outcome.seconds, None, "", self.callback, self.submission.callback_url, self.callback_attempts,
            self.callback_at, self.callback_error,
        )  # fmt: skip


class Model:
    """A journal, and all of its owners. `now` is the time of day."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.keys: dict[tuple[tuple[str, str], str], tuple[float, Receipt, Any]] = {}
        self.fired: dict[int, float] = {}
        self.dead: set[object] = set()

    def append(self, owner: object, submission: Submission, claim: bool, now: float) -> Receipt:
        call = submission.call
        scheduled = call.schedule_id and submission.trigger != "rerun"
        if scheduled and self.fired.get(call.schedule_id, float("-inf")) >= call.scheduled_time:
            return Receipt(0, "", repeated=True)
        place = (call.space, call.name), submission.idempotency_key
        request = call.method, call.path, call.query, call.body
        if place[1] is not None and place in self.keys:
            at, receipt, known = self.keys[place]
            if at + KEY_LIFE > now:
                if known != request:
                    raise KeyReused
                return Receipt(receipt.id, receipt.label, repeated=True)
        run_at = now if submission.run_at is None else submission.run_at
        record = Record(submission, now, run_at)
        record.ready = run_at <= now
        if submission.callback_url is not None:
            record.callback = CallbackState.WAITING
        self.records[call.id] = record
        if scheduled:
            self.fired[call.schedule_id] = call.scheduled_time
        if place[1] is not None:
            self.keys[place] = now, Receipt(call.id, call.label), request
        if claim and record.ready:
            self._start(record, owner, now)
        return Receipt(call.id, call.label, claimed=record.status is Status.RUNNING)

    def _start(self, record: Record, owner: object, now: float) -> None:
        record.status, record.ready, record.owner = Status.RUNNING, False, owner
        record.attempt += 1
        record.started_at = now
        record.events.append("running")

    def promote(self, now: float) -> None:
        for record in self.records.values():
            if record.status is Status.QUEUED and record.run_at <= now:
                record.ready = True

    def claim(self, owner: object, wanted: Mapping[tuple[str, str], int], now: float) -> list[int]:
        self.promote(now)
        claimed = []
        for function, count in wanted.items():
            ready = [id for id, record in self.records.items() if record.ready and record.function == function]
            ready.sort(key=lambda id: (-self.records[id].submission.priority, id))
            claimed += ready[:count]
        for id in claimed:
            self._start(self.records[id], owner, now)
        return claimed

    def held(self, owner: object, id: int) -> Record | None:
        record = self.records.get(id)
        return record if record is not None and record.status is Status.RUNNING and record.owner is owner else None

    def complete(self, owner: object, id: int, outcome: Outcome, now: float) -> bool:
        record = self.held(owner, id)
        if record is None:
            return False
        record.outcome = outcome
        self._finish(record, outcome.status, now)
        if record.callback is CallbackState.WAITING:
            record.callback, record.callback_at = CallbackState.PENDING, now
        return True

    def _finish(self, record: Record, status: Status, now: float) -> None:
        record.status, record.finished_at, record.owner, record.cancel, record.ready = status, now, None, False, False
        record.events.append(str(status))

    def _cancel(self, record: Record, now: float) -> None:
        self._finish(record, Status.CANCELLED, now)
        record.callback = CallbackState.NONE

    def requeue(self, owner: object, id: int, outcome: Outcome | None, at: float, now: float) -> bool:
        record = self.held(owner, id)
        if record is None:
            return False
        if record.cancel:
            self._cancel(record, now)
            return True
        record.status, record.owner, record.run_at, record.ready = Status.QUEUED, None, at, at <= now
        if outcome is None:
            record.attempt -= 1
            record.started_at = None
        else:
            record.outcome = outcome
        record.events.append("queued")
        return True

    def cancel(self, id: int, now: float) -> Status | None:
        record = self.records.get(id)
        if record is None:
            return None
        if record.status is Status.QUEUED:
            self._cancel(record, now)
        elif record.status is Status.RUNNING:
            record.cancel = True
        return record.status

    def cancelled(self, owner: object, id: int, now: float) -> bool:
        record = self.held(owner, id)
        if record is not None:
            self._cancel(record, now)
        return record is not None

    def to_cancel(self, owner: object) -> list[int]:
        return sorted(id for id in self.records if (record := self.held(owner, id)) and record.cancel)

    def take_over(self, owner: object) -> list[int]:
        self.free_deliveries()
        taken = [id for id, record in self.records.items() if record.owner in self.dead]
        for id in taken:
            self.records[id].owner = owner
        return sorted(taken)

    def free_deliveries(self) -> None:
        for record in self.records.values():
            if record.deliverer in self.dead:
                record.deliverer = None

    def pending(self) -> list[tuple[float, int]]:
        return sorted(
            (record.callback_at or 0.0, id)
            for id, record in self.records.items()
            if record.callback is CallbackState.PENDING and record.deliverer is None
        )

    def claim_deliveries(self, owner: object, limit: int, now: float) -> list[int]:
        self.free_deliveries()
        ids = [id for at, id in self.pending() if at <= now][:limit]
        for id in ids:
            self.records[id].deliverer = owner
            self.records[id].callback_attempts += 1
        return ids

    def settle(self, owner: object, id: int, state: CallbackState, error: str | None) -> None:
        record = self.records.get(id)
        if record is not None and record.callback is CallbackState.PENDING and record.deliverer is owner:
            record.callback, record.callback_at, record.deliverer, record.callback_error = state, None, None, error

    def redeliver(self, id: int, at: float, error: str | None) -> bool:
        record = self.records.get(id)
        if record is None or record.status not in (Status.SUCCEEDED, Status.FAILED):
            return False
        if record.submission.callback_url is None:
            return False
        if error is None and record.deliverer is not None:
            return True
        if record.callback is not CallbackState.PENDING:
            record.callback_attempts = 0
        record.callback, record.callback_at, record.deliverer = CallbackState.PENDING, at, None
        record.callback_error = error
        return True

    def prune(self, space: str, before: float, keep: int, now: float) -> int:
        self.keys = {place: known for place, known in self.keys.items() if known[0] >= now - KEY_LIFE}
        final = [(record.finished_at, id) for id, record in self.records.items()
                 if record.finished_at is not None and record.function[0] == space]  # fmt: skip
        final.sort(reverse=True)
        gone = [id for index, (at, id) in enumerate(final) if index >= keep or at < before]
        gone = [id for id in gone if self.records[id].callback is not CallbackState.PENDING]
        for id in gone:
            del self.records[id]
        return len(gone)

    def waiting(self) -> dict[tuple[str, str], int]:
        counts: dict[tuple[str, str], int] = {}
        for record in self.records.values():
            if record.ready:
                counts[record.function] = counts.get(record.function, 0) + 1
        return counts

    def next_due(self) -> float | None:
        delayed = [each.run_at for each in self.records.values() if each.status is Status.QUEUED and not each.ready]
        return min([*delayed, *(at for at, _ in self.pending())], default=None)

    def counts(self, now: float) -> Counts:
        records = self.records.values()
        ready = [max(record.run_at, record.accepted_at) for record in records if record.ready]
        return Counts(
            sum(record.status is Status.QUEUED for record in records),
            sum(record.status is Status.RUNNING for record in records),
            max(0.0, now - min(ready, default=now)),
            sum(record.callback is CallbackState.PENDING for record in records),
            sum(record.callback is CallbackState.DEAD for record in records),
        )
