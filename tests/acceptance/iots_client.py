"""Altair's client as its users use it. Run by the interpreter that has it: `python iots_client.py URL CLIENT SECRET`.

It calls functions/demo/echo.py, and prints what came back as JSON.
"""

from __future__ import annotations

import json
import sys

from iots import API

ECHO = "/spaces/demo/functions/echo"


def main(url: str, client: str, secret: str) -> None:
    """Every way in which it calls a function."""
    said = {}
    with API(host=url).set_credentials(client, secret, ["function"]) as api:
        answer = api.make_request("GET", f"{ECHO}/invoke/stock/market", params={"company": "Google"}, timeout=10)
        said["get"] = [answer.status_code, answer.headers["x-invoked"], answer.json()]
        answer = api.make_request("POST", f"{ECHO}/invoke", body={"a": 1}, timeout=10)
        said["post"] = [answer.status_code, answer.json()]
        answer = api.make_request("POST", f"{ECHO}/async-invoke", body={"a": 2}, timeout=10)
        said["submit"] = [answer.status_code, answer.headers["x-call-id"].isdigit()]
        answer = api.make_request("GET", "/spaces/demo/functions/none/invoke", timeout=10)
        said["missing"] = [answer.status_code, answer.json()["error"]["status"]]
        token = api._security_strategy.get_token()
    said["revoked"] = API(host=url).set_token(token).make_request("GET", f"{ECHO}/invoke", timeout=10).status_code
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
