"""The text of a trained function's `handler.py`. Called by the host, so it imports nothing but the standard library.

What the file does when a worker runs it is in `runtime/classify/__init__.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pprint import pformat
from typing import Any

_HANDLER = '''\
"""A function trained on its samples; written by the host. Do not edit: it is written anew with each model."""

from __future__ import annotations

from runtime.classify import serve

handle = serve(
    function={function},
    models={models!a},
    model={model!a},
    keep={keep:d},
)
'''


def generated(function: Mapping[str, Any], models: str, model: str = "", keep: int = 5) -> str:
    """The whole of `handler.py`: the same text for the same arguments, pure ASCII, whatever the names hold.

    `function` is the dict that `runtime/classify/__init__.py` describes; TypeError where JSON cannot say it. `models`
    is the absolute path of the folder with its models, `model` the id of the one to answer with.
    """
    plain = json.loads(json.dumps({**function}))
    literal = ascii(plain) if len(ascii(plain)) < 90 else pformat(plain, indent=1, width=110, sort_dicts=False)
    literal = literal.encode("ascii", "backslashreplace").decode("ascii")
    return _HANDLER.format(function=literal.replace("\n", "\n    "), models=models, model=model, keep=keep)
