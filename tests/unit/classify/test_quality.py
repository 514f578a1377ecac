"""How good trained functions are: learned from some of a real set of samples, asked about the others."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from tests.unit.classify.conftest import Function, data_uri, encoded

Samples = list[tuple[Any, str]]

SENTENCES = {
    "refund": """I want a refund for my order. Please refund the last payment. When will I get my money back?
        You charged my card twice. Can I get my money back? The payment was charged twice to my credit card.
        I was charged for an order that I cancelled. My refund has not been paid yet. Why was my card charged again?
        Please pay the money back to my card. The invoice is wrong and I paid too much. How do I ask for a refund?
        I cancelled, but the payment was not refunded. I never agreed to this charge on my card.
        How long does a refund to a credit card take?""",
    "delivery": """Where is my parcel? My parcel has not been delivered. The delivery is three days late.
        Can I change the delivery address? The tracking number of my parcel does not work. When will my parcel arrive?
        The courier delivered the package to a wrong address. My package has not arrived yet. Is the delivery delayed?
        Tracking says that the package was delivered, but it never arrived. How long does shipping take?
        Please deliver the parcel to my neighbour. The courier did not ring. Can you ship the package to Canada?
        The package is late, where is it?""",
    "account": """I forgot my password. I cannot log in to my account. My account is locked. How do I reset my password?
        The password reset email does not arrive. The login page shows an error. Please unlock my account.
        How do I change the email address of my account? I cannot sign in with my password. My login does not work.
        The app does not accept my password. Somebody else has logged in to my account. Please delete my account.
        I want to change my user name. The link to reset the password has expired.""",
    "praise": """Great service, thank you! Thank you for the quick help. I love this shop. I am very happy with it.
        Thanks, the support was really friendly. The best shop ever, I love it. Really great quality. Excellent!
        Very friendly and quick, thanks a lot. I am really happy with the quality. Wonderful, I love the colour.
        Great shop, I will recommend it to my friends. Excellent support, five stars. It is perfect, thank you so much.
        I really like the new design.""",
}


def split(samples: Samples, per_label: int, most_asked: int = 300) -> tuple[Samples, Samples]:
    """So many of each label to learn from, and the rest to ask about."""
    shuffled = random.Random(4).sample(samples, len(samples))
    learned: Samples = []
    for label in sorted({label for _, label in samples}):
        learned += [sample for sample in shuffled if sample[1] == label][:per_label]
    return learned, [sample for sample in shuffled if not any(sample is one for one in learned)][:most_asked]


def share_right(function: Function, samples: Samples) -> float:
    return float(np.mean([next(iter(function.call(data)[0])) == label for data, label in samples]))


def achieved(function: Function, samples: Samples, per_label: int) -> float:
    """The share of right answers to what it was not trained on. The accuracy that it claims is about that."""
    learned, asked = split(samples, per_label)
    answer = function.train(learned, sorted({label for _, label in samples}))
    share = share_right(function, asked)
    if len(learned) >= 40:  # of fewer, one sample more or less is too much of a difference
        assert answer["accuracy"] == pytest.approx(share, abs=0.2)
    return share


@pytest.mark.parametrize(
    ("load", "per_label", "floor"),
    [
        (load_iris, 5, 0.88),
        (load_iris, 30, 0.92),
        (load_wine, 5, 0.9),
        (load_wine, 30, 0.94),
        (load_breast_cancer, 10, 0.85),
        (load_breast_cancer, 100, 0.93),
    ],
)
def test_tables_of_numbers(
    make: Callable[..., Function], load: Callable[[], Any], per_label: int, floor: float
) -> None:
    """Flowers, wines, tumours, by what was measured of them."""
    found = load()
    names = [f"number {index}" for index in range(found.data.shape[1])]
    fields = [{"id": f"field_{index}", "name": name, "type": "Number"} for index, name in enumerate(names)]
    samples = [
        (dict(zip(names, map(float, row), strict=True)), str(found.target_names[label]))
        for row, label in zip(found.data, found.target, strict=True)
    ]

    assert achieved(make(input="Tabular", fields=fields), samples, per_label) >= floor


@functools.cache
def handwriting() -> Samples:
    """Digits as images."""
    digits = load_digits()
    return [
        (
            data_uri(encoded(Image.fromarray((255 - image * 15.9).astype(np.uint8)).resize((80, 100)), "JPEG")),
            str(label),
        )
        for image, label in zip(digits.images, digits.target, strict=True)
    ]


@pytest.mark.parametrize(("per_label", "floor"), [(5, 0.82), (30, 0.95)])
def test_images(make: Callable[..., Function], per_label: int, floor: float) -> None:
    """Handwritten digits, ten labels."""
    assert achieved(make(input="Image"), handwriting(), per_label) >= floor


@pytest.mark.parametrize(("per_label", "floor"), [(5, 0.6), (10, 0.75)])
def test_sentences(make: Callable[..., Function], per_label: int, floor: float) -> None:
    """What people write to a shop; four labels."""
    samples = [
        (" ".join(sentence.split()), label)
        for label, text in SENTENCES.items()
        for sentence in text.replace("?", ".").replace("!", ".").split(".")
        if sentence.strip()
    ]
    assert len(samples) >= 60

    assert achieved(make(), samples, per_label) >= floor
