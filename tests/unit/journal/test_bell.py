"""News of commits: put together, kept short, told at once but not too often."""

from __future__ import annotations

import asyncio

import pytest

from runtime.journal.bell import ANYTHING, MOST_IDS, NOTHING, News, Teller, decode, encode, of_calls

pytestmark = pytest.mark.anyio


def test_news_are_put_together() -> None:
    """Nothing is lost of either; beyond so many calls, all are meant."""
    both = News((1, 2), calls=True).and_(News((3,), cancels=True))
    many = of_calls(range(MOST_IDS)).and_(News((-1,)))

    assert both == News((1, 2, 3), calls=True, cancels=True)
    assert many.ids is None
    assert of_calls(range(MOST_IDS + 1)).ids is None
    assert News(None).and_(News((1,))).ids is None


@pytest.mark.parametrize("news", [NOTHING, ANYTHING, News((1, 2**53 - 1), callbacks=True)])
def test_news_arrive_as_they_were_rung(news: News) -> None:
    """To the bit."""
    assert decode(encode(news)) == news


async def test_the_first_is_told_at_once_and_the_next_together() -> None:
    """So a burst costs two rings, however long it is."""
    told: list[News] = []
    teller = Teller(told.append, gap=lambda: 0.01)
    teller.add(NOTHING)
    for id in range(5):
        teller.add(News((id,)))
    at_once = list(told)
    while len(told) < 2:
        await asyncio.sleep(0.005)

    assert at_once == [News((0,))]
    assert told == [News((0,)), News((1, 2, 3, 4))]


async def test_what_is_left_is_told_at_the_end() -> None:
    """Nothing is kept back."""
    told: list[News] = []
    teller = Teller(told.append, gap=lambda: 1000.0)
    teller.add(News((1,)))
    teller.add(News((2,)))
    teller.close()
    teller.close()

    assert told == [News((1,)), News((2,))]
