"""Secrets: given to the function by name, from spaces.toml, never from its source.

curl http://127.0.0.1:8000/spaces/demo/functions/sign/invoke --json '{"text": "I agree"}'
"""

import hashlib
import hmac


def handle(data, secrets):
    key = secrets["signing_key"].encode()
    return {"signature": hmac.new(key, data["text"].encode(), hashlib.sha256).hexdigest()}
