"""Three functions for Google's functions framework in a file."""

from dataclasses import dataclass

import flask
import functions_framework


@functions_framework.http
def google(request: flask.Request) -> flask.typing.ResponseReturnValue:
    if request.path == "/teapot":
        flask.abort(418)
    if request.path == "/lines":
        return (f"{number}\n" for number in range(3)), 202, {"X-Kind": "stream"}
    return {"method": request.method, "path": request.path, "name": request.args.get("name"), "json": request.json}


@dataclass
class Greeting:
    name: str

    @staticmethod
    def from_dict(given: dict) -> "Greeting":
        return Greeting(given["name"])

    def to_dict(self) -> dict:
        return {"hello": self.name}


@functions_framework.typed
def greet(greeting: Greeting):
    return greeting


@functions_framework.cloud_event
def stored(event):
    print("stored", event["subject"], event.data)
