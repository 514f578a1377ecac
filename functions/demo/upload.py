"""Any body: `body` is what the client sent, byte for byte, whatever its type.

curl http://127.0.0.1:8000/spaces/demo/functions/upload/invoke -T README.md
"""

import hashlib


def handle(function_call_info):
    body = function_call_info.body
    return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
