"""A whole HTTP answer: status, headers and a body that is not JSON. Open it in a browser.

curl -i http://127.0.0.1:8000/spaces/demo/functions/page/invoke
curl -i http://127.0.0.1:8000/spaces/demo/functions/page/invoke/no/such/page
"""

import html

HEAD = '<!doctype html><meta name="viewport" content="width=device-width, initial-scale=1"><title>Page</title>'


def handle(function_call_info):
    found = function_call_info.path == "/"
    title = "Welcome" if found else f"There is no {function_call_info.path} here"
    return {
        "status_code": 200 if found else 404,
        "headers": {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"},
        "body": f"{HEAD}<h1>{html.escape(title)}</h1>",
    }
