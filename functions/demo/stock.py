"""Sub-paths: whatever follows /invoke, and the query, reach the function.

curl 'http://127.0.0.1:8000/spaces/demo/functions/stock/invoke/stock/market/today?company=Google'
"""


def handle(data, function_call_info):
    return {"path": function_call_info.path, "company": function_call_info.query.get("company")}
