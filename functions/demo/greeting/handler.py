"""A folder: `handler.py` is the function, the files beside it are its own modules.

    curl http://127.0.0.1:8000/spaces/demo/functions/greeting/invoke --json '{"name": "Ada"}'

GREETING_LANGUAGE is set for the whole space in spaces.toml.
"""

import os

from phrases import phrase


def handle(data):
    return phrase(os.environ.get("GREETING_LANGUAGE", "en")).format(name=data.get("name", "stranger"))
