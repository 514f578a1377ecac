"""An exception: the client gets a 500 that says what and where; `spaces dev` adds the traceback.

curl -i http://127.0.0.1:8000/spaces/demo/functions/failing/invoke --json '{"shares": 3, "people": 0}'
"""


def handle(data):
    return {"each": data["shares"] / data["people"]}
