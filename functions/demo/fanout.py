"""Async: one worker runs many calls at once, and one call can wait for many things at once.

curl http://127.0.0.1:8000/spaces/demo/functions/fanout/invoke --json '{"cities": ["Oslo", "Lima"]}'
"""

import asyncio


async def temperature(city):
    await asyncio.sleep(0.2)  # stands for a request to a weather service
    return len(city) * 5


async def handle(data):
    cities = data.get("cities", ["Oslo", "Lima"])
    return dict(zip(cities, await asyncio.gather(*map(temperature, cities)), strict=True))
