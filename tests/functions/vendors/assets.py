"""A Cognite Functions handler."""

from cognite.client import CogniteClient


def handle(client: CogniteClient, data: dict, secrets: dict, function_call_info: dict) -> dict:
    return {
        "client": type(client).__name__,
        "base_url": client.config.base_url,
        "project": client.config.project,
        "data": data,
        "secrets": sorted(secrets),
        "call": function_call_info.get("call_id"),
        "function": function_call_info["function_id"],
        "schedule": function_call_info.get("schedule_id"),
    }
