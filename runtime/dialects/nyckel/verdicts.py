"""What a function returned, read as labels with confidences, and the labels as Nyckel's clients read them.

Used by `invoke`; pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...errors import FunctionError
from ...lessons import Profile, ids

PRESENT = 0.5  # from this confidence on, a tag is taken to be there
LONGEST_NAME = 500  # characters of a label
MOST = 10_000  # labels in one answer
SLACK = 1e-6  # by which rounding may take a confidence beyond 0 and 1

Verdict = tuple[tuple[str, float], ...]  # label names and confidences, the best first


class NoLabel(FunctionError):
    """The function did not answer with a label."""


def read(value: bytes, profile: Profile) -> Verdict:
    """The labels in a function's answer, the best first; NoLabel.

    A label; [label, confidence]; {label: confidence, …}; a list of pairs; {"labelName": …, "confidence": …} or a list
    of these. For tags also a list of labels. Labels of a trained function that are no longer there are left out.
    """
    found = _pairs(msgspec.json.decode(value), profile.is_tags)
    if found is None or (not found and not profile.is_tags) or len(found) > MOST:
        raise _refusal(value, profile)
    best: dict[str, float] = {}
    for name, confidence in found:
        if not 0 < len(name) <= LONGEST_NAME or not -SLACK <= confidence <= 1 + SLACK:
            raise _refusal(value, profile)
        if profile.created:
            label = profile.by_name.get(name)
            if label is None:
                continue
            name = label.name
        best[name] = max(best.get(name, 0.0), min(1.0, max(0.0, float(confidence))))
    return tuple(sorted(best.items(), key=lambda pair: -pair[1]))


def classification(verdict: Verdict, profile: Profile, count: int | None, metadata: bool) -> dict[str, Any]:
    """The answer of a function that chooses one label; `count`: how many are shown besides."""
    (name, confidence), *_ = verdict
    found: dict[str, Any] = {"labelName": name, "labelId": label_id(profile, name), "confidence": confidence}
    if metadata:
        found |= _metadata(profile, name)
    if count is not None:
        found["labelConfidences"] = [_shown(pair, profile, metadata) for pair in verdict[:count]]
    return found


def tags(verdict: Verdict, profile: Profile, count: int | None, metadata: bool) -> list[dict[str, Any]]:
    """The answer of a function that chooses any number of them: those that are present, or the best `count`."""
    chosen = present(verdict) if count is None else verdict[:count]
    return [_shown(pair, profile, metadata) for pair in chosen]


def present(verdict: Verdict) -> Verdict:
    """The tags that are taken to be there."""
    return tuple(pair for pair in verdict if pair[1] >= PRESENT)


def label_id(profile: Profile, name: str) -> str:
    """The id of a label, also of one that is not recorded yet."""
    known = profile.by_name.get(name)
    return known.id if known is not None else ids.label_id(profile.number, name)


def _shown(pair: tuple[str, float], profile: Profile, metadata: bool) -> dict[str, Any]:
    name, confidence = pair
    shown = {"labelName": name, "labelId": label_id(profile, name), "confidence": confidence}
    return shown | _metadata(profile, name) if metadata else shown


def _metadata(profile: Profile, name: str) -> dict[str, Any]:
    label = profile.by_name.get(name)
    return {"labelMetadata": label.metadata} if label is not None and label.metadata else {}


def _pairs(value: Any, tags: bool) -> list[tuple[str, float]] | None:
    """Names and confidences as they were returned; None where it is nothing of the kind."""
    if isinstance(value, str):
        return [(value, 1.0)]
    if isinstance(value, dict):
        one = _pair(value)
        if one is not None:
            return [one]
        return list(value.items()) if all(map(_is_number, value.values())) else None
    if not isinstance(value, list):
        return None
    one = _pair(value)
    if one is not None:
        return [one]
    pairs = [_pair(each) for each in value]
    if all(pair is not None for pair in pairs):
        return [pair for pair in pairs if pair is not None]
    return [(each, 1.0) for each in value] if tags and all(isinstance(each, str) for each in value) else None


def _pair(value: Any) -> tuple[str, float] | None:
    if isinstance(value, dict) and "labelName" in value:
        value = [value["labelName"], value.get("confidence", 1.0)]
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and _is_number(value[1]):
        return value[0], value[1]
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refusal(value: bytes, profile: Profile) -> NoLabel:
    wanted = "labels" if profile.is_tags else "a label"
    forms = '"red", ["red", 0.9] or {"red": 0.9, "blue": 0.1}'
    if profile.is_tags:
        forms += ', or a list such as ["red", "blue"]'
    answer = value[:200].decode("utf-8", "replace")
    return NoLabel(
        f"`{profile.space}/{profile.name}` did not answer with {wanted}, but with {answer}; called through this API it"
        f" returns {forms}, with confidences from 0 to 1"
    )
