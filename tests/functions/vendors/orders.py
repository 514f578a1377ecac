"""An AWS Lambda handler behind an HTTP API."""

import base64
import json


def lambda_handler(event, context):
    path, http = event["rawPath"], event["requestContext"]["http"]
    if path == "/image":
        body = base64.b64encode(b"\xff\x00").decode()
        return {"statusCode": 200, "headers": {"Content-Type": "image/png"}, "body": body, "isBase64Encoded": True}
    if path == "/inferred":
        return {"order": event["queryStringParameters"]["id"], "request": context.aws_request_id}
    order = json.loads(event["body"])
    return {
        "statusCode": 201,
        "headers": {"Location": f"/orders/{order['id']}"},
        "cookies": ["seen=1", "last=2"],
        "body": json.dumps({"method": http["method"], "left": context.get_remaining_time_in_millis() > 0}),
    }
