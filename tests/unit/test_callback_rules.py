"""Callback URLs, patterns of hosts, and secrets: what is taken and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import callback_rules
from runtime.toml_reader import Document

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()


@pytest.fixture
def document(tmp_path: Path) -> Document:
    """One without a file."""
    return Document(tmp_path / "spaces.toml", environ={"HOOK": SECRET, "WRONG": "hunter2"}, homes={})


@pytest.mark.parametrize(
    "text",
    [
        "http://h",
        "https://hooks.example.com/a/b",
        "HTTPS://Hooks.Example.com",
        "http://127.0.0.1:8872/cb?k=1&j=2",
        "http://[::1]:80/",
        "http://h:65535",
        "http://h_1.example./x?a={b}|c&d=%0A",
        f"http://h/{'x' * 2039}",
    ],
)
def test_a_url_stays_as_it_is(text: str) -> None:
    """Byte for byte, the query too."""
    assert callback_rules.url(text) == text


def test_a_fragment_is_dropped() -> None:
    """It is never sent, so it is not kept."""
    assert callback_rules.url("http://h/a?b#c#d") == "http://h/a?b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/cb",
        "//h/cb",
        "h/cb",
        "ftp://h/",
        "javascript:alert(1)",
        "http:h",
        "http://",
        "http:///cb",
        "http://:80/",
        "http://h:0/",
        "http://h:65536/",
        "http://h:x/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[1.2.3.4]/",
        "http://h%6f/",
        "http://user@h/",
        "http://user:secret@h/",
        "http://@h/",
        "http://h\\@other/",
        "http://h/\r\nX: y",
        "http://h/a b",
        "http://h/\t",
        "http://h/ä",
        " http://h/",
        f"http://h/{'x' * 2040}",
    ],
)
def test_what_is_no_callback_url(text: str) -> None:
    """Everything but an absolute http or https URL, and the message has nothing of it."""
    with pytest.raises(ValueError) as caught:
        callback_rules.url(text)

    assert "secret" not in str(caught.value)


@given(st.text() | st.text().map("http://{}".format))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    """No text fails in another way, and a URL that was taken is taken again."""
    try:
        taken = callback_rules.url(text)
    except ValueError:
        return

    assert callback_rules.url(taken) == taken


@pytest.mark.parametrize(
    "pattern",
    [
        "hooks.example.com",
        "localhost",
        "*.example.com",
        "hooks.example.com:8443",
        "*.example.com:443",
        "my_service",
        "10.0.0.0/8",
        "127.0.0.1",
        "127.0.0.1:8872",
        "10.0.0.0/8:443",
        "::1",
        "fd00::/8",
        "[::1]",
        "[::1]:8000",
        "[fd00::/8]:443",
    ],
)
def test_a_pattern_of_hosts(pattern: str) -> None:
    """Names, names with a star in front, addresses and networks, each with a port or without."""
    assert callback_rules.hosts([pattern]) == (pattern,)


def test_patterns_are_in_lower_case() -> None:
    """As the names that they are compared with."""
    assert callback_rules.hosts(["Hooks.Example.COM", "FD00::/8"]) == ("hooks.example.com", "fd00::/8")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "*.",
        "*example.com",
        "hooks.*.com",
        "a..b",
        "http://h",
        "h/path",
        "h:",
        "h:0",
        "h:65536",
        "h:http",
        "h:*",
        "a b",
        "-h",
        "1",
        "256.1.1.1",
        "1.2.3",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "::1:x",
        "[h]",
        "[::1",
        "user@h",
        "h\n",
    ],
)
def test_what_is_no_pattern_of_hosts(pattern: str) -> None:
    """It is refused, not taken for a name that nothing has."""
    with pytest.raises(ValueError, match="is no host"):
        callback_rules.hosts(["h", pattern])


def test_secrets_are_read_from_where_they_are(document: Document) -> None:
    """In their order: the first signs."""
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()

    assert callback_rules.secrets(document, ["env:HOOK", other]) == (SECRET, other)
    assert callback_rules.secrets(document, []) == ()


@pytest.mark.parametrize(
    "secret",
    [
        "hunter2",
        "env:WRONG",
        SECRET.removeprefix("whsec_"),
        "WHSEC_" + SECRET[6:],
        "whsec_" + base64.b64encode(b"hunter2").decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        SECRET[:-1],
        SECRET + "\n",
        SECRET + " ",
        "whsec_ä" + SECRET,
    ],
)
def test_what_is_no_secret(document: Document, secret: str) -> None:
    """It is said which one, and nothing of what it is."""
    with pytest.raises(ValueError, match=r"^number 2 is no secret of Standard Webhooks") as caught:
        callback_rules.secrets(document, [SECRET, secret])

    assert "hunter2" not in str(caught.value)
    assert secret not in str(caught.value)
