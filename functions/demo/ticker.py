"""A stream: each item is sent as it is made. A client that leaves stops the generator.

curl -N 'http://127.0.0.1:8000/spaces/demo/functions/ticker/invoke?count=5' -H 'Accept: text/event-stream'
"""

import random
import time


def handle(data):
    price = 100.0
    for number in range(1, int(data.get("count", 10)) + 1):
        price += random.uniform(-1, 1)
        yield {"number": number, "price": round(price, 2)}
        time.sleep(1)
