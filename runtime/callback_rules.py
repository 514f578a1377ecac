"""What a callback may be: its URL, its secrets, and the patterns of hosts that it may go to.

`settings` and `schedules` check spaces.toml with it. It only reads; `callbacks` delivers.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

from runtime import toml_reader as toml

MAX_URL = 2048  # characters
SECRET_PREFIX = "whsec_"  # that of Standard Webhooks

_SECRET_BYTES = range(24, 65)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_UNSAFE = re.compile(r"[^\x21-\x7e]|\\")
_HOST = re.compile(r"[a-z0-9._-]{1,253}")


def url(text: str) -> str:
    """An absolute http or https URL without its fragment; ValueError, which never repeats it, for any other.

    User and password are refused in it, and so is what is not ASCII.
    """
    if len(text) > MAX_URL:
        raise ValueError(f"a callback URL has at most {MAX_URL} characters, and this one {len(text)}")
    if _UNSAFE.search(text):
        raise ValueError("a callback URL has only visible ASCII characters and no backslash")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("this is no URL") from None
    if parts.scheme not in ("http", "https") or not host or not _is_host(host) or port == 0:
        raise ValueError("a callback URL begins with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError("a callback URL has no user or password")
    return text.partition("#")[0]


def hosts(raw: Any) -> tuple[str, ...]:
    """Patterns of hosts: a name, `*.` and a name, an address or a network; each may end with `:PORT`. In lower case."""
    patterns = toml.strings('hosts such as ["hooks.example.com", "*.example.com", "10.0.0.0/8"]', raw)
    for pattern in patterns:
        if not _is_pattern(pattern):
            raise ValueError(
                f"{toml.shown(pattern)} is no host; use a name, `*.example.com`, an address or a network"
                " such as 10.0.0.0/8, without http://; each may end with a :PORT"
            )
    return tuple(pattern.lower() for pattern in patterns)


def secrets(document: toml.Document, raw: Any) -> tuple[str, ...]:
    """Secrets of Standard Webhooks, or where they are ("env:VAR", "file:PATH"). No message repeats one."""
    found = tuple(document.variable(each) for each in toml.strings('secrets such as ["env:NAME"]', raw))
    for number, secret in enumerate(found, 1):
        if not _is_secret(secret):
            raise ValueError(
                f'number {number} is no secret of Standard Webhooks: "{SECRET_PREFIX}" and the Base64 of'
                f" {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]} random bytes"
            )
    return found


def _is_host(text: str) -> bool:
    return _HOST.fullmatch(text) is not None or (":" in text and "%" not in text and _is_network(text))


def _is_secret(text: str) -> bool:
    if not text.startswith(SECRET_PREFIX):
        return False
    try:
        return len(base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)) in _SECRET_BYTES
    except ValueError:
        return False


def _is_pattern(text: str) -> bool:
    if _is_network(text):  # before a port is looked for: ::1 ends with none
        return True
    host, colon, port = text.rpartition(":")
    if colon and not text.endswith("]"):
        if not _PORT.fullmatch(port) or int(port) > 65535:
            return False
        text = host
    if text.startswith("[") and text.endswith("]"):
        return ":" in text and _is_network(text[1:-1])
    if ":" not in text and _is_network(text):
        return True
    return _NAME.fullmatch(text) is not None and not text.rstrip(".").rpartition(".")[2].isdigit()


def _is_network(text: str) -> bool:
    """Whether this is an address or a network; in one, nothing may be set beyond its prefix."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
