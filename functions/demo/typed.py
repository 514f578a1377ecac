"""Typed data: what does not fit the annotation is answered with 422, naming the field.

curl http://127.0.0.1:8000/spaces/demo/functions/typed/invoke --json '{"item": "tea", "price": 2.5}'
curl http://127.0.0.1:8000/spaces/demo/functions/typed/invoke --json '{"item": "tea", "price": "cheap"}'
"""

from dataclasses import dataclass


@dataclass
class Order:
    item: str
    price: float
    quantity: int = 1


def handle(data: Order):
    return {"item": data.item, "total": data.price * data.quantity}
