"""A function for Altair IoT Studio."""

from function import variables


def handle(req):
    if req.method == "GET":
        return {"status_code": 200, "body": f"<p>{variables.get('greeting')}</p>"}
    return {"status_code": 201, "body": {"path": req.path, "known": variables.exists("other")}, "headers": {"X-A": "1"}}
