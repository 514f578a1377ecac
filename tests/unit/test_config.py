"""load, its structs and every way in which spaces.toml can be wrong; parse_bind and is_loopback."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config import (
    Config,
    FunctionSettings,
    Retry,
    ServerSettings,
    SpaceSettings,
    is_loopback,
    load,
    parse_bind,
    reload,
)
from runtime.errors import ConfigError

MIB = 1024 * 1024
TOKENS = dict.fromkeys(("ADMIN_TOKEN", "DEMO_TOKEN", "SHOP_TOKEN", "TILL_TOKEN", "CI_SECRET", "TOKEN_KEY"), "a" * 32)
ENVIRONMENT = {**TOKENS, "API_KEY": "x", "DEMO_API_KEY": "x", "HOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


class Root:
    """A folder with functions/ that the tests put a spaces.toml into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "functions").mkdir()

    def load(self, text: str, environ: Mapping[str, str] | None = None) -> Config:
        (self.folder / "spaces.toml").write_bytes(text.encode())
        return load(self.folder, environ=environ or {})

    def problems(self, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        """What `load` complains of, without the folder's name."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, environ)
        problems = caught.value.details["problems"]
        assert caught.value.message == "\n".join(problems)
        assert all("\n" not in problem for problem in problems)
        return [problem.removeprefix(f"{self.folder}/") for problem in problems]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


# What holds


def test_without_a_file_everything_is_built_in(root: Root) -> None:
    """A folder with functions/ needs no spaces.toml."""
    config = load(root.folder, environ={})
    assert config == Config(
        root=root.folder,
        file=root.folder / "spaces.toml",
        functions_dir=root.folder / "functions",
        server=ServerSettings(state=root.folder / ".spaces"),
        defaults=FunctionSettings(),
        spaces={},
    )
    assert config.settings("any", "function") == FunctionSettings()
    assert config.space_path("any") == root.folder / "functions" / "any"


def test_the_built_in_values() -> None:
    """The defaults that users are told."""
    assert msgspec.structs.asdict(FunctionSettings()) == {
        "timeout": 10.0,
        "load_timeout": 30.0,
        "concurrency": 64,
        "min_workers": 0,
        "max_workers": 16,
        "max_waiting": 1000,
        "idle_timeout": 60.0,
        "memory": None,
        "max_body": 6 * MIB,
        "max_response": 6 * MIB,
        "methods": None,
        "max_path_levels": None,
        "env": {},
        "secrets": {},
        "fork": "auto",
        "preload": (),
        "async_timeout": 900.0,
        "async_max_body": MIB,
        "max_queued": 10_000,
        "retry": Retry(attempts=1, codes=frozenset({408, 429, 500, 502, 503, 504}), min_wait=10.0, max_wait=120.0),
        "idempotent": False,
        "require_callback": False,
        "callback_hosts": (),
        "callback_secrets": (),
        "callback_attempts": 8,
        "callback_max_wait": 300.0,
        "keep_for": 86400.0,
        "keep_calls": 100_000,
        "schedule": (),
        "public": False,
        "input": "Text",
        "output": "Classification",
        "capture": True,
    }
    assert msgspec.structs.asdict(ServerSettings()) == {
        "bind": "127.0.0.1:8000",
        "engine": "hypercorn",
        "processes": 1,
        "state": Path(".spaces"),
        "certfile": None,
        "keyfile": None,
        "http3": False,
        "drain_timeout": 30.0,
        "access_log": False,
        "max_zygotes": 256,
        "metrics_functions": 200,
        "tokens": (),
        "token_key": None,
        "token_life": 3600.0,
        "issuer": None,
        "projects": (),
        "kernel_attach": True,
    }


def test_paths_are_absolute_for_a_relative_root(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROOT may be given relative to the working directory; the config holds where it is."""
    monkeypatch.chdir(root.folder.parent)
    config = load(Path(root.folder.name), environ={})
    assert config.root == root.folder
    assert config.server.state == root.folder / ".spaces"


def test_every_key_of_server_is_read(root: Root) -> None:
    """Each key arrives in its field, paths made absolute from ROOT."""
    (root.folder / "cert.pem").touch()
    (root.folder / "key.pem").touch()
    server = root.load("""
        [server]
        bind = "[::1]:9000"
        engine = "hypercorn"
        state = "var/state"
        certfile = "cert.pem"
        keyfile = "key.pem"
        http3 = true
        drain_timeout = 0
        access_log = true
        max_zygotes = 5
        metrics_functions = 0
        projects = ["main", "Other-1"]
    """).server
    assert server == ServerSettings(
        bind="[::1]:9000",
        engine="hypercorn",
        state=root.folder / "var/state",
        certfile=root.folder / "cert.pem",
        keyfile=root.folder / "key.pem",
        http3=True,
        drain_timeout=0.0,
        access_log=True,
        max_zygotes=5,
        metrics_functions=0,
        projects=("main", "Other-1"),
    )


def test_every_function_setting_is_read(root: Root) -> None:
    """Each key arrives in its field, in the unit of the field."""
    settings = root.load("""
        [defaults]
        timeout = "500ms"
        load_timeout = 1
        concurrency = 1
        min_workers = 2
        max_workers = 3
        max_waiting = 0
        idle_timeout = "1.5h"
        memory = "512MiB"
        max_body = "6MB"
        max_response = 0
        methods = ["get", "POST"]
        max_path_levels = 0
        env = { A = "1" }
        secrets = { b = "2" }
        fork = "never"
        preload = ["numpy", "sklearn.linear_model", "numpy"]
        async_timeout = "1h"
        async_max_body = "2MiB"
        max_queued = 0
        retry = { attempts = 3, codes = [500, 503], min_wait = "1s", max_wait = 2 }
        idempotent = true
        require_callback = true
        callback_hosts = ["Hooks.example.com", "10.0.0.0/8"]
        callback_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
        callback_attempts = 1
        callback_max_wait = "1m"
        keep_for = "2h"
        keep_calls = 0
    """).defaults
    assert settings == FunctionSettings(
        timeout=0.5,
        load_timeout=1.0,
        concurrency=1,
        min_workers=2,
        max_workers=3,
        max_waiting=0,
        idle_timeout=5400.0,
        memory=512 * MIB,
        max_body=6_000_000,
        max_response=0,
        methods=frozenset({"GET", "POST"}),
        max_path_levels=0,
        env={"A": "1"},
        secrets={"b": "2"},
        fork="never",
        preload=("numpy", "sklearn.linear_model"),
        async_timeout=3600.0,
        async_max_body=2 * MIB,
        max_queued=0,
        retry=Retry(attempts=3, codes=frozenset({500, 503}), min_wait=1.0, max_wait=2.0),
        idempotent=True,
        require_callback=True,
        callback_hosts=("hooks.example.com", "10.0.0.0/8"),
        callback_secrets=("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",),
        callback_attempts=1,
        callback_max_wait=60.0,
        keep_for=7200.0,
        keep_calls=0,
    )


def test_schedules_of_a_function(root: Root) -> None:
    """Each of the ways to write them; what they mean is for runtime/schedules.py."""
    config = root.load("""
        [spaces.s.functions.one]
        schedule = "*/5 * * * *"
        [spaces.s.functions.table]
        schedule = { cron = "@daily", timezone = "Europe/Berlin", data = { a = 1 }, catch_up = true }
        [spaces.s.functions.list]
        schedule = ["@daily", { cron = "@hourly" }]
        [[spaces.s.functions.tables.schedule]]
        cron = "@daily"
        [[spaces.s.functions.tables.schedule]]
        cron = "@hourly"
        callback = "https://hooks.example.com/"
    """)
    found = {name: settings.schedule for name, settings in config.spaces["s"].functions.items()}
    assert {name: [each.cron for each in schedules] for name, schedules in found.items()} == {
        "one": ["*/5 * * * *"],
        "table": ["0 0 * * *"],
        "list": ["0 0 * * *", "0 * * * *"],
        "tables": ["0 0 * * *", "0 * * * *"],
    }
    assert found["table"][0].data == b'{"a":1}'
    assert found["tables"][1].callback == "https://hooks.example.com/"
    assert len({each.id for schedules in found.values() for each in schedules}) == 6
    assert config.settings("s", "other").schedule == ()


def test_retry_is_merged_key_by_key(root: Root) -> None:
    """A function sets how often, and keeps its space's waits."""
    config = root.load("""
        [defaults]
        retry.min_wait = "1s"
        [spaces.s]
        retry = { max_wait = "20s", codes = [503] }
        [spaces.s.functions.f]
        retry.attempts = 5
    """)
    assert config.settings("s", "f").retry == Retry(attempts=5, codes=frozenset({503}), min_wait=1.0, max_wait=20.0)
    assert config.settings("other", "f").retry == Retry(min_wait=1.0)


LEVELS = ["", "[defaults]", "[spaces.s]", "[spaces.s.functions.f]"]


@pytest.mark.parametrize("present", range(1, 8))
def test_the_most_specific_value_holds(root: Root, present: int) -> None:
    """Whichever of the three tables set a key, the innermost of them decides for the function."""
    chosen = [level for level in (1, 2, 3) if present >> (level - 1) & 1]
    config = root.load("".join(f"{LEVELS[level]}\ntimeout = {level}\n" for level in chosen))
    assert config.settings("s", "f").timeout == max(chosen)
    assert config.settings("s", "other").timeout == max([10, *(level for level in chosen if level < 3)][-1:])
    assert config.settings("other", "f").timeout == (1 if 1 in chosen else 10)


def test_each_key_is_inherited_by_itself(root: Root) -> None:
    """Setting one key of a function leaves the others as its space has them; the order of tables is free."""
    config = root.load("""
        [spaces.s.functions.f]
        max_workers = 2
        [spaces.s]
        timeout = 3
        [defaults]
        timeout = 4
        max_body = 5
    """)
    assert config.settings("s", "f") == FunctionSettings(timeout=3.0, max_workers=2, max_body=5)


@pytest.mark.parametrize("table", ["env", "secrets"])
def test_variables_are_merged_name_by_name(root: Root, table: str) -> None:
    """A function has the variables of all levels, its own before its space's before the defaults'."""
    config = root.load(f"""
        [defaults.{table}]
        A = "default"
        B = "default"
        C = "default"
        [spaces.s.{table}]
        B = "space"
        C = "space"
        [spaces.s.functions.f.{table}]
        C = "function"
    """)
    assert getattr(config.settings("s", "f"), table) == {"A": "default", "B": "space", "C": "function"}
    assert getattr(config.settings("s", "g"), table) == {"A": "default", "B": "space", "C": "space"}
    assert getattr(config.defaults, table) == {"A": "default", "B": "default", "C": "default"}


@pytest.mark.parametrize(("key", "word"), [("memory", "none"), ("methods", "any"), ("max_path_levels", "none")])
def test_a_word_takes_back_what_an_outer_table_set(root: Root, key: str, word: str) -> None:
    """What has no limit by default can have none again."""
    limit = {"memory": "1048576", "methods": '["GET"]', "max_path_levels": "3"}[key]
    config = root.load(f'[defaults]\n{key} = {limit}\n[spaces.s]\n{key} = "{word}"')
    assert getattr(config.defaults, key) is not None
    assert getattr(config.settings("s", "f"), key) is None


def test_a_space_is_where_its_path_says(root: Root) -> None:
    """`path` counts from ROOT and may lead out of it; without it the space is below functions/."""
    elsewhere = root.folder / "elsewhere"
    elsewhere.mkdir()
    config = root.load(f"""
        [spaces.a]
        path = "elsewhere/../elsewhere"
        [spaces.b]
        path = "{elsewhere}"
        [spaces.c]
    """)
    assert config.space_path("a") == config.space_path("b") == elsewhere
    assert config.space_path("c") == root.folder / "functions" / "c"
    assert config.spaces["c"] == SpaceSettings(config.space_path("c"), FunctionSettings(), {})


def test_variables_come_from_the_environment_and_from_files(root: Root) -> None:
    """`env:` and `file:` stand for what is there; any other string for itself."""
    (root.folder / "token").write_bytes("päss\n\n".encode())
    (root.folder / "dos").write_bytes(b"pass\r\n")
    (root.folder / "bare").write_bytes(b"pass")
    (root.folder / "empty").touch()
    text = f"""
        [spaces.s.secrets]
        variable = "env:TOKEN"
        unset_to_nothing = "env:EMPTY"
        file = "file:token"
        dos = "file:{root.folder}/dos"
        bare = "file:bare"
        empty = "file:empty"
        literal = "https://host:80/"
    """
    assert root.load(text, {"TOKEN": "t0p:x", "EMPTY": ""}).settings("s", "f").secrets == {
        "variable": "t0p:x",
        "unset_to_nothing": "",
        "file": "päss\n",
        "dos": "pass",
        "bare": "pass",
        "empty": "",
        "literal": "https://host:80/",
    }


def test_the_environment_overrides_server_keys(root: Root) -> None:
    """The four variables come before the file, unless they are empty."""
    text = '[server]\nbind = "1.2.3.4:5"\nengine = "hypercorn"\nstate = "here"\nprocesses = 2'
    environ = {"SPACES_BIND": ":0", "SPACES_ENGINE": "uvicorn", "SPACES_STATE": "there", "SPACES_PROCESSES": "3"}
    server = root.load(text, environ).server
    assert (server.bind, server.engine, server.state) == (":0", "uvicorn", root.folder / "there")
    assert server.processes == 3
    assert root.load(text, dict.fromkeys(environ, "")).server == root.load(text).server


def test_a_byte_order_mark_and_dos_line_ends_are_no_problem(root: Root) -> None:
    """What Windows editors write is read, with the right lines."""
    assert root.load("\ufeff[defaults]\r\ntimeout = 1\r\n").defaults.timeout == 1
    (problem,) = root.problems("\ufeff[defaults]\r\n\r\ntimout = 1\r\n")
    assert problem.startswith("spaces.toml:3: ")


# What is wrong


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    """A ROOT that is not there, or no folder, is said to be so."""
    (tmp_path / "file").touch()
    for root in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(root))}: there is no such folder$"):
            load(root, environ={})


def test_a_root_without_functions_says_what_to_do(tmp_path: Path) -> None:
    """With neither functions/ nor a space elsewhere, `spaces new` is recommended."""
    with pytest.raises(ConfigError, match="`spaces new hello`"):
        load(tmp_path, environ={})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spaces.toml").write_text('[spaces.a]\npath = "elsewhere"')
    assert load(tmp_path, environ={}).space_path("a") == tmp_path / "elsewhere"
    (tmp_path / "spaces.toml").write_text("[spaces.a]")
    with pytest.raises(ConfigError, match="`spaces new hello`"):
        load(tmp_path, environ={})


def test_the_file_is_named_as_the_root_was_given(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """From within ROOT a message begins with spaces.toml and the line, as editors and terminals link it."""
    (root.folder / "spaces.toml").write_text("\nx = 1\n")
    monkeypatch.chdir(root.folder)
    with pytest.raises(ConfigError, match=r"^spaces\.toml:2: unknown key `x`"):
        load(Path("."), environ={})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nbind = \n", "spaces.toml:2: invalid value"),
        ("[server]\nbind = 'x", "spaces.toml:2: expected"),
        ("[server]\n\n[server]\n", "spaces.toml:3: cannot declare"),
        ("a = 1\na = 2\n", "spaces.toml:2: cannot overwrite a value: is `a` there twice?"),
        ("[a]\n 'b c' . d = 1\n 'b c'.d = '='", "spaces.toml:3: cannot overwrite a value: is `'b c'.d` there twice?"),
        ("a = 1\na = [\n'=']\n", "spaces.toml:3: cannot overwrite a value"),
        ("\nx = " + "9" * 5000, "spaces.toml:1: "),
        ("x = " + "[" * 100_000, "spaces.toml:1: nested too deeply"),
    ],
)
def test_what_is_no_toml_is_located(root: Root, text: str, problem: str) -> None:
    """The parser's own words, after file and line."""
    (found,) = root.problems(text)
    assert found.lower().startswith(problem)
    assert "(at " not in found


def test_a_file_that_cannot_be_read_is_located(root: Root) -> None:
    """Bytes that are no UTF-8, and a spaces.toml that is a folder, are problems of the file."""
    file = root.folder / "spaces.toml"
    file.write_bytes(b"[server]\n\nbind = '\xff'\n")
    with pytest.raises(ConfigError, match=r"spaces\.toml:3: not UTF-8 text$"):
        load(root.folder, environ={})
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match=r"spaces\.toml:1: cannot be read: "):
        load(root.folder, environ={})


WRONG = [
    # unknown keys, and the hints
    ("[defaults]\ntimout = 1", 2, "unknown key `timout` in [defaults]; did you mean `timeout`?"),
    ("[server]\nBIND = ':1'", 2, "unknown key `BIND` in [server]; did you mean `bind`?"),
    (
        "[spaces.a]\nmax-workers = 1",
        2,
        "unknown key `max-workers` in [spaces.a]; did you mean `max_workers`?",
    ),
    (
        "[spaces.a.functions.b]\nfrok = 1",
        2,
        "unknown key `frok` in [spaces.a.functions.b]; did you mean `fork`?",
    ),
    ("[default]\nx = 1", 1, "unknown key `default` at the top level; did you mean `defaults`?"),
    ("[server]\nzzz = 1", 2, "unknown key `zzz` in [server]; the keys here are `bind`, `engine`, `processes`, "),
    (
        "[server]\ntimeout = 1",
        2,
        "unknown key `timeout` in [server]; it belongs in [defaults], [spaces.NAME] or ",
    ),
    ("bind = ':1'", 1, "unknown key `bind` at the top level; it belongs in [server]"),
    ("[defaults]\npath = 'x'", 2, "unknown key `path` in [defaults]; it belongs in [spaces.NAME]"),
    ("[spaces.a.stock]", 1, "unknown key `stock` in [spaces.a]; did you mean [spaces.a.functions.stock]?"),
    ("[spaces.a.function.b]", 1, "unknown key `function` in [spaces.a]; did you mean `functions`?"),
    ("[defaults]\n'a\\b' = 1", 2, "unknown key 'a\\\\b' in [defaults]; the keys here are"),
    # settings that have their place
    (
        "[defaults]\nschedule = '* * * * *'",
        2,
        "`schedule` in [defaults]: a schedule is one function's; it belongs in [spaces.NAME.functions.NAME]",
    ),
    ("[spaces.a]\nschedule = '* * * * *'", 2, "`schedule` in [spaces.a]: a schedule is one function's; it belongs"),
    ("[[spaces.a.schedule]]\ncron = '@daily'", 1, "`schedule` in [spaces.a]: a schedule is one function's"),
    (
        "[spaces.a.functions.b]\nkeep_for = '1h'",
        2,
        "`keep_for` in [spaces.a.functions.b]: calls are kept and forgotten by space; it belongs in [defaults] or",
    ),
    (
        "[spaces.a.functions.b]\nkeep_calls = 1",
        2,
        "`keep_calls` in [spaces.a.functions.b]: calls are kept and forgotten by space; it belongs in [defaults] or",
    ),
    ("[server]\nretry = {}", 2, "unknown key `retry` in [server]; it belongs in [defaults], [spaces.NAME] or"),
    (
        "[spaces.a.functions.b]\npreload = ['numpy']",
        2,
        "`preload` in [spaces.a.functions.b]: one process imports it for all functions of a space; it belongs in",
    ),
    ("[defaults]\npreload = 'numpy'", 2, "`preload` in [defaults]: must be a list of names of modules such as"),
    (
        f"[defaults]\npreload = {[f'm{number}' for number in range(101)]}",
        2,
        "`preload` in [defaults]: must be at most 100 names of modules, not 101",
    ),
    (f"[defaults]\npreload = ['{'m' * 151}']", 2, "`preload` in [defaults]: 'mmm"),
    ("[defaults]\npreload = ['./numpy']", 2, "`preload` in [defaults]: './numpy' is no name of a module"),
    ("[server]\nkeep_for = 1", 2, "unknown key `keep_for` in [server]; it belongs in [defaults] or [spaces.NAME]"),
    ("schedule = '@daily'", 1, "unknown key `schedule` at the top level; it belongs in [spaces.NAME.functions.NAME]"),
    # durable calls
    ("[defaults]\nasync_timeout = 0", 2, "`async_timeout` in [defaults]: must be more than 0"),
    ("[defaults]\nasync_max_body = -1", 2, "`async_max_body` in [defaults]: must be at least 0 bytes"),
    ("[defaults]\nmax_queued = -1", 2, "`max_queued` in [defaults]: must be 0 to"),
    ("[defaults]\nidempotent = 1", 2, "`idempotent` in [defaults]: must be true or false"),
    ("[defaults]\nrequire_callback = 'no'", 2, "`require_callback` in [defaults]: must be true or false"),
    ("[defaults]\ncallback_attempts = 0", 2, "`callback_attempts` in [defaults]: must be 1 to"),
    ("[defaults]\ncallback_max_wait = 0", 2, "`callback_max_wait` in [defaults]: must be more than 0"),
    ("[defaults]\nkeep_for = 0", 2, "`keep_for` in [defaults]: must be more than 0"),
    ("[defaults]\nkeep_calls = -1", 2, "`keep_calls` in [defaults]: must be 0 to"),
    ("[defaults]\ncallback_hosts = 'h'", 2, "`callback_hosts` in [defaults]: must be a list of hosts such as"),
    ("[defaults]\ncallback_hosts = [1]", 2, "`callback_hosts` in [defaults]: must be a list of hosts such as"),
    ("[defaults]\ncallback_hosts = ['http://h']", 2, "`callback_hosts` in [defaults]: 'http://h' is no host; use"),
    (
        "[defaults]\ncallback_host = ['h']",
        2,
        "unknown key `callback_host` in [defaults]; did you mean `callback_hosts`?",
    ),
    ("[defaults]\ncallback_secrets = 'x'", 2, "`callback_secrets` in [defaults]: must be a list of secrets such as"),
    ("[defaults]\ncallback_secrets = ['x']", 2, "`callback_secrets` in [defaults]: number 1 is no secret of Standard"),
    (
        "[defaults]\ncallback_secrets = ['env:NO']",
        2,
        "`callback_secrets` in [defaults]: the environment variable 'NO' is not set",
    ),
    ("[defaults]\nretry = 3", 2, "`retry` in [defaults]: must be a table, not a whole number"),
    ("[defaults]\nretry = { attempts = 0 }", 2, "`attempts` in [defaults.retry]: must be 1 to"),
    ("[defaults.retry]\nattempt = 2", 2, "unknown key `attempt` in [defaults.retry]; did you mean `attempts`?"),
    ("[defaults.retry]\ncodes = 503", 2, "`codes` in [defaults.retry]: must be a list of statuses such as"),
    ("[defaults.retry]\ncodes = [200]", 2, "`codes` in [defaults.retry]: 200 is no status from 400 to 599"),
    ("[defaults.retry]\ncodes = ['503']", 2, "`codes` in [defaults.retry]: a string is no status from 400 to 599"),
    ("[defaults.retry]\ncodes = [true]", 2, "`codes` in [defaults.retry]: True is no status from 400 to 599"),
    ("[defaults.retry]\nmin_wait = 0", 2, "`min_wait` in [defaults.retry]: must be more than 0"),
    (
        "[defaults.retry]\nattempts = 2\nmin_wait = '3m'",
        3,
        "`min_wait` in [defaults.retry]: `min_wait` is 180.0 there, but `max_wait` is 120.0",
    ),
    (
        "[defaults]\nretry.min_wait = 20\n[spaces.a]\n[spaces.a.functions.b]\nretry.max_wait = 15",
        5,
        "`max_wait` in [spaces.a.functions.b.retry]: `min_wait` is 20.0 there, but `max_wait` is 15.0",
    ),
    # schedules
    (
        "[spaces.a.functions.b]\nschedule = '61 * * * *'",
        2,
        "`cron` in [spaces.a.functions.b.schedule]: '61 * * * *' is no cron expression: bad minute",
    ),
    (
        "[spaces.a.functions.b]\nschedule = [\n'@daily',\n'61 * * * *']",
        4,
        "`cron` in [spaces.a.functions.b.schedule]: '61 * * * *' is no cron expression: bad minute",
    ),
    (
        "[spaces.a.functions.b]\nschedule = [\n'@daily',\n5]",
        4,
        "`schedule` in [spaces.a.functions.b]: must be a cron expression such as",
    ),
    (
        "[[spaces.a.functions.b.schedule]]\ncron='@daily'\n[[spaces.a.functions.b.schedule]]\ncron='0'\ntimezone='UTC'",
        4,
        "`cron` in [spaces.a.functions.b.schedule]: '0' is no cron expression; use five fields",
    ),
    (
        "[spaces.a.functions.b]\nschedule = { cron = '@daily', catchup = true }",
        2,
        "unknown key `catchup` in [spaces.a.functions.b.schedule]; did you mean `catch_up`?",
    ),
    ("[spaces.a.functions.b]\nschedules = '@daily'", 2, "unknown key `schedules` in [spaces.a.functions.b]; did you"),
    # wrong types
    ("server = 1", 1, "`server` at the top level: must be a table, not a whole number"),
    ("[[defaults]]", 1, "`defaults` at the top level: must be a table, not a list"),
    ("[spaces]\na = 'x'", 2, "'a' in [spaces]: must be a table, not a string"),
    ("[spaces.a]\nfunctions = 1.5", 2, "`functions` in [spaces.a]: must be a table, not a number"),
    ("[spaces.a.functions]\nb = true", 2, "'b' in [spaces.a.functions]: must be a table, not true or false"),
    ("[server]\nbind = 8000", 2, "`bind` in [server]: must be a string in quotes, not a whole number"),
    ("[server]\nhttp3 = 'yes'", 2, "`http3` in [server]: must be true or false, not a string"),
    ("[defaults]\ntimeout = 07:32:00", 2, "`timeout` in [defaults]: must be a duration such as 10, "),
    ("[defaults]\nmax_workers = '4'", 2, "`max_workers` in [defaults]: must be a whole number, not the string '4'"),
    ("[defaults]\nmethods = 'GET'", 2, "`methods` in [defaults]: must be a list of HTTP methods"),
    ("[defaults]\nenv = 'A=1'", 2, "`env` in [defaults]: must be a table, not a string"),
    # wrong values
    ("[server]\nbind = 'x'", 2, "`bind` in [server]: 'x' is no address to listen on"),
    (
        "[server]\nengine = 'gunicorn'",
        2,
        '`engine` in [server]: must be "hypercorn" or "uvicorn", not \'gunicorn\'',
    ),
    ("[server]\nstate = ''", 2, "`state` in [server]: must be a path"),
    ('[server]\nstate = "\\u0000"', 2, "`state` in [server]: must be a path"),
    ('[server]\nprojects = ["a/b"]', 2, "`projects` in [server]: 'a/b' is no name of a project"),
    ("[server]\nprojects = 'a'", 2, "`projects` in [server]: must be a list of names of projects"),
    ("[server]\nmax_zygotes = 0", 2, "`max_zygotes` in [server]: must be 1 to 2147483647, not 0"),
    ("[server]\nmetrics_functions = -1", 2, "`metrics_functions` in [server]: must be 0 to 2147483647, not -1"),
    (
        "[server]\ndrain_timeout = -1",
        2,
        "`drain_timeout` in [server]: must be 0 to 366 days, not -1",
    ),
    (
        "[defaults]\ntimeout = 0",
        2,
        "`timeout` in [defaults]: must be more than 0 and at most 366 days, not 0",
    ),
    ("[defaults]\nload_timeout = 'x'", 2, "`load_timeout` in [defaults]: 'x' is no duration"),
    ("[defaults]\nidle_timeout = 0", 2, "`idle_timeout` in [defaults]: must be more than 0"),
    ("[defaults]\nconcurrency = 0", 2, "`concurrency` in [defaults]: must be 1 to"),
    ("[defaults]\nmin_workers = -1", 2, "`min_workers` in [defaults]: must be 0 to"),
    ("[defaults]\nmax_workers = 0", 2, "`max_workers` in [defaults]: must be 1 to"),
    ("[defaults]\nmax_waiting = -1", 2, "`max_waiting` in [defaults]: must be 0 to"),
    ("[defaults]\nmax_path_levels = -1", 2, "`max_path_levels` in [defaults]: must be 0 to"),
    ("[defaults]\nmemory = 512", 2, "`memory` in [defaults]: must be at least 1048576 bytes"),
    ("[defaults]\nmax_body = '6M'", 2, "`max_body` in [defaults]: '6M' is no size"),
    ("[defaults]\nmax_response = -1", 2, "`max_response` in [defaults]: must be at least 0 bytes"),
    ("[defaults]\nmethods = ['G T']", 2, "`methods` in [defaults]: 'G T' is no HTTP method"),
    ("[defaults]\nfork = 'sometimes'", 2, '`fork` in [defaults]: must be "auto" or "always" or "never"'),
    ("[spaces.'a b']", 1, "'a b' in [spaces]: a name is 1 to 63 of the characters"),
    (f"[spaces.{'a' * 64}]", 1, f"'{'a' * 64}' in [spaces]: a name is 1 to 63 of the characters"),
    ("[spaces.a.functions.'b.py']", 1, "'b.py' in [spaces.a.functions]: a name is 1 to 63 of the characters"),
    ("[spaces.a]\npath = 'nowhere'", 2, "`path` in [spaces.a]: there is no folder '"),
    # variables
    ("[spaces.a.env]\n1A = 'x'", 2, "'1A' in [spaces.a.env]: an environment variable's name is letters"),
    ('[spaces.a.env]\nA = "\\u0000"', 2, "'A' in [spaces.a.env]: an environment variable cannot hold a NUL"),
    (
        "[spaces.a.env]\nPORT = 80",
        2,
        "'PORT' in [spaces.a.env]: must be a string in quotes, not a whole number",
    ),
    (
        "[spaces.a.secrets]\n'a b' = 'x'",
        2,
        "'a b' in [spaces.a.secrets]: a name is 1 to 63 of the characters",
    ),
    (
        "[spaces.a]\nsecrets.b = 'env:NO'",
        2,
        "'b' in [spaces.a.secrets]: the environment variable 'NO' is not set",
    ),
    ("[spaces.a]\nsecrets = {b = 'env:'}", 2, "'b' in [spaces.a.secrets]: \"env:\" must be followed by"),
    (
        "[spaces.a.secrets]\n\nb = 'env:BAD'",
        3,
        "'b' in [spaces.a.secrets]: the environment variable 'BAD' is not UTF",
    ),
    ("[spaces.a.secrets]\nb = 'file:none'", 2, "'b' in [spaces.a.secrets]: cannot read '"),
    ("[spaces.a.secrets]\nb = 'file:'", 2, "'b' in [spaces.a.secrets]: must be a path"),
    ("[spaces.a.secrets]\nb = 'file:binary'", 2, "'b' in [spaces.a.secrets]: '"),
    # keys that do not fit together
    ("[server]\ncertfile = 'pem'", 2, "`certfile` in [server] needs `keyfile` as well"),
    ("[server]\nkeyfile = 'pem'", 2, "`keyfile` in [server] needs `certfile` as well"),
    ("[server]\ncertfile = 'no'\nkeyfile = 'pem'", 2, "`certfile` in [server]: there is no file '"),
    ("[server]\n\nhttp3 = true", 3, "`http3` in [server] needs `certfile` and `keyfile`"),
    (
        "[server]\nprocesses = 2\ncertfile = 'pem'\nkeyfile = 'pem'\nhttp3 = true",
        5,
        "`http3` in [server] goes with one process only (`processes`): the datagrams of a connection would reach any",
    ),
    ("[server]\nprocesses = 0", 2, "`processes` in [server]: must be 1 to 256, not 0"),
    ("[server]\nprocesses = 257", 2, "`processes` in [server]: must be 1 to 256, not 257"),
    ("[server]\nprocesses = 'all'", 2, "`processes` in [server]: must be a whole number, not the string 'all'"),
    (
        "[server]\nengine = 'uvicorn'\ncertfile = 'pem'\nkeyfile = 'pem'\nhttp3 = true",
        5,
        "`http3` in [server] needs the engine hypercorn, not uvicorn",
    ),
    (
        "[spaces.a]\ntimeout = 1\nmin_workers = 17",
        3,
        "`min_workers` in [spaces.a]: `min_workers` is 17 there, but `max_workers` is 16",
    ),
    (
        "[defaults]\nmin_workers = 3\n[spaces.a.functions.b]\nmax_workers = 2",
        4,
        "`max_workers` in [spaces.a.functions.b]: `min_workers` is 3 there, but `max_workers` is 2",
    ),
]


@pytest.mark.parametrize(("text", "line", "problem"), WRONG, ids=[text for text, _, _ in WRONG])
def test_a_wrong_file_is_one_located_problem(root: Root, text: str, line: int, problem: str) -> None:
    """Each mistake is reported once, with its line, in these words."""
    (root.folder / "pem").touch()
    (root.folder / "binary").write_bytes(b"\xff")
    (found,) = root.problems(text, {"BAD": "\udcff"})
    assert found.startswith(f"spaces.toml:{line}: {problem}")


def test_all_problems_are_reported_in_the_order_of_their_lines(root: Root) -> None:
    """One start shows everything that is to be mended, in the file first."""
    problems = root.problems(
        """
        [spaces.s.functions.f]
        timeout = "soon"
        [spaces.s]
        timout = 1
        secrets = { a = "env:NO", b = "env:NEITHER" }
        [server]
        bind = "x"
        note = '''
        timeout = 1
        '''
        [defaults]
        min_workers = 99
        """,
        {"SPACES_BIND": "y", "SPACES_ENGINE": "z"},
    )
    assert [problem.partition(": ")[0] for problem in problems] == [
        *[f"spaces.toml:{line}" for line in (3, 5, 6, 6, 8, 9, 13)],
        "SPACES_BIND",
        "SPACES_ENGINE",
    ]


def test_a_bound_that_is_wrong_outside_is_reported_there_only(root: Root) -> None:
    """Spaces and functions that inherit the mistake are not blamed for it."""
    (problem,) = root.problems("[defaults]\nmin_workers = 99\n[spaces.a]\ntimeout = 1\n[spaces.a.functions.b]")
    assert problem.startswith("spaces.toml:2: ")


# Secrets


def test_no_message_repeats_a_secret(root: Root) -> None:
    """Whatever is wrong about a secret or near it, its value stays out of the error."""
    (root.folder / "hidden").write_bytes(b"hunter2\xff")
    texts = [
        "[spaces.a]\nsecrets = 'hunter2'",
        "[spaces.a]\nsecrets = ['hunter2']",
        "[spaces.a]\nsecret = 'hunter2'",
        "[spaces.a]\nsecret = { key = 'hunter2' }",
        "[spaces.a.secrets]\nkey = ['hunter2']",
        "[spaces.a.secrets]\n'a b' = 'hunter2'",
        "[spaces.a.secrets]\nkey = 'file:hidden'",
        "[spaces.a.secrets]\nkey = 'env:HIDDEN'",
        "[spaces.a.secrets]\nkey = hunter2",
        "[spaces.a.secrets]\nkey = 'hunter2",
        '[spaces.a.env]\nKEY = "hunter2\\u0000"',
        "[spaces.a]\ncallback_secrets = 'hunter2'",
        "[spaces.a]\ncallback_secrets = ['hunter2']",
        "[spaces.a]\ncallback_secrets = ['whsec_hunter2']",
        "[spaces.a]\ncallback_secrets = ['file:hidden']",
        "[spaces.a]\ncallback_secrets = [1, 'hunter2']",
        "[spaces.a]\ncallback_secret = ['hunter2']",
        "[spaces.a]\nschedule = { cron = '@daily', callback = 'https://h/hunter2' }",
        "[spaces.a.functions.b]\nschedule = { cron = '@daily', callback = 'ftp://h/hunter2' }",
        "[spaces.a.secrets]\nkey = 'hunter2'\n[defaults]\ntimout = 1",
    ]
    for text in texts:
        assert "hunter2" not in "".join(root.problems(text, {"HIDDEN": "hunter2\udcff"})), text


def test_no_struct_shows_a_secret(root: Root) -> None:
    """The repr of every struct has the names of the variables and not their values, also for rich."""
    config = root.load("[spaces.a.functions.b]\nsecrets = { key = 'hunter2' }\nenv = { KEY = 'hunter3' }")
    settings = config.settings("a", "b")
    for text in (repr(config), str(config), repr(config.spaces["a"]), repr(settings), f"{settings}"):
        assert "'key': '***'" in text
        assert "'KEY': '***'" in text
        assert "hunter" not in text
    assert dict(settings.__rich_repr__())["secrets"] == {"key": "***"}
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    config = root.load(f"""
        [spaces.a.functions.b]
        callback_secrets = ["{secret}", "{secret}"]
        schedule = {{ cron = "@daily", callback = "https://h/hunter2", data = "hunter3" }}
    """)
    assert "callback_secrets=('***', '***')" in repr(config)
    assert "hunter" not in repr(config)
    assert secret not in repr(config)
    assert "timeout=10.0" in repr(settings)


# Processes


@pytest.mark.parametrize(
    ("change", "new_process"),
    [
        ({"memory": MIB}, True),
        ({"env": {"A": "2", "B": "2"}}, True),
        ({"secrets": {"a": "2"}}, True),
        ({"fork": "never"}, True),
        ({"concurrency": 1}, True),
        ({"max_body": 1}, True),
        ({"env": {"B": "2", "A": "1"}}, False),
        ({"timeout": 1.0, "max_workers": 1, "methods": frozenset({"GET"})}, False),
        ({"async_timeout": 1.0, "retry": Retry(attempts=2), "idempotent": True, "callback_secrets": ("x",)}, False),
    ],
)
def test_which_changes_need_a_new_process(change: dict[str, Any], new_process: bool) -> None:
    """Only what a process took up at its start; the order of variables is not a change."""
    settings = FunctionSettings(env={"A": "1", "B": "2"}, secrets={"a": "1"})
    changed = msgspec.structs.replace(settings, **change)
    assert (settings.process_settings() != changed.process_settings()) is new_process
    assert hash(settings.process_settings()) == hash(
        FunctionSettings(env={"B": "2", "A": "1"}, secrets={"a": "1"}).process_settings()
    )


# Addresses


@settings(deadline=None)
@given(
    st.ip_addresses() | st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{1,5})?", fullmatch=True),
    st.integers(0, 65535),
)
def test_a_bind_round_trips(host: Any, port: int) -> None:
    """Any address or host name, with any port, comes apart into what it was made of."""
    written = f"[{host}]" if isinstance(host, ipaddress.IPv6Address) else str(host)
    assert parse_bind(f"{written}:{port}") == (str(host), port)
    assert parse_bind(f":{port}") == parse_bind(f"{port}") == ("127.0.0.1", port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "localhost",
        "localhost:",
        "host:http",
        "host:65536",
        "host:-1",
        "host:+1",
        "::1:80",
        "[::1]",
        "[::1:80",
        "::1]:80",
        "[host]:80",
        "[]:80",
        "[1.2.3.4]:80",
        "1.2.3:80",
        "256.1.1.1:80",
        "1:80",
        "a b:80",
        "http://h:80",
        *("*:80", "h:80\n", "h:８０", "unix:/tmp/x", "-h:80", "0080000"),
    ],
)
def test_what_is_no_address_to_listen_on(text: str) -> None:
    """A missing or wrong port or host is refused, with the text and the right form."""
    with pytest.raises(ConfigError, match=r"use HOST:PORT") as caught:
        parse_bind(text)
    assert caught.value.message.startswith(repr(text))


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """No text makes parse_bind fail in another way."""
    try:
        host, port = parse_bind(text)
    except ConfigError:
        return
    assert host
    assert 0 <= port <= 65535


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("0:0:0:0:0:0:0:1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    """Loopback addresses and localhost, nothing else; in doubt a host counts as exposed."""
    assert is_loopback(host) is loopback


# The page


def documented_rows() -> dict[str, list[str]]:
    """The rows of the page's tables of keys, by key."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    return {key: [cell.strip() for cell in rest.split(" | ")] for key, rest in rows if rest.count(" | ") == 3}


def test_every_key_is_documented() -> None:
    """The page has a row with type, default, meaning and example for each key, and for no other."""
    keys = {*ServerSettings.__struct_fields__, *FunctionSettings.__struct_fields__}
    assert set(documented_rows()) == keys | {"path", "functions", "clients", "subjects"}


def test_documented_defaults_and_examples_are_true(root: Root) -> None:
    """Each default on the page, written into a file, changes nothing, and each example changes something."""
    pem = {"certfile": 'certfile = "cert.pem"', "keyfile": 'keyfile = "key.pem"'}
    for name in ("cert.pem", "key.pem"):
        (root.folder / name).touch()
    for key, (_, default, _, example) in documented_rows().items():
        if key in ("path", "certfile", "keyfile"):
            continue
        in_server = key in ServerSettings.__struct_fields__
        table = "[spaces.s.functions.f]" if key == "schedule" else "[spaces.s]"
        start = "\n".join(["[server]", *pem.values()] if in_server else [table])
        plain = root.load(start)
        if default != "none":
            assert root.load(f"{start}\n{key} = {default.strip('`')}") == plain, key
        assert root.load(f"{start}\n{example.strip('`')}", ENVIRONMENT) != plain, key


def test_the_examples_of_the_page_load(root: Root) -> None:
    """Each TOML block on the page is a right spaces.toml."""
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        block = block.replace("/run/secrets/", "")
        (root.folder / "signing_key").write_text("key")
        assert root.load(block, ENVIRONMENT).spaces.keys() == tomllib.loads(block)["spaces"].keys()


def test_reload_keeps_what_was_set_instead_of_the_file(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line set stays set; the rest is read again, the environment's secrets too."""
    (root.folder / "spaces.toml").write_text('[defaults]\ntimeout = "1s"\n')
    config = load(root.folder, environ={"SPACES_BIND": "127.0.0.1:7", "SPACES_ENGINE": "uvicorn"})
    assert reload(config) == config
    monkeypatch.setenv("KEY", "value")
    (root.folder / "spaces.toml").write_text('[defaults]\ntimeout = "2s"\nsecrets = {key = "env:KEY"}\n')
    changed = reload(config)
    assert changed.server == config.server
    assert (changed.defaults.timeout, changed.defaults.secrets) == (2.0, {"key": "value"})


TOKEN = 'tokens = ["sha256:%s"]\n' % ("ab" * 32)
GUARDED = f"[spaces.demo]\n{TOKEN}[spaces.other]\n{TOKEN}"


@pytest.mark.parametrize(
    ("before", "after", "opened"),
    [
        (GUARDED, None, "the space demo, the space other"),
        (GUARDED, "", "the space demo, the space other"),
        (GUARDED, f"[spaces.demo]\n{TOKEN}", "the space other"),
        (GUARDED, f"[spaces.demo]\n[spaces.other]\n{TOKEN}", "the space demo"),
        (f"[server]\n{TOKEN}", None, "this host"),
        (f"[server]\n{TOKEN}", GUARDED, "this host"),
    ],
)
def test_reload_opens_nothing_that_was_guarded(root: Root, before: str, after: str | None, opened: str) -> None:
    """A file that is away, empty or cut short for a moment must not let everybody in: the settings before go on."""
    config = root.load(before)
    file = root.folder / "spaces.toml"
    file.unlink() if after is None else file.write_text(after)

    with pytest.raises(ConfigError, match=f"who may call {opened};"):
        reload(config)


@pytest.mark.parametrize("after", [f"[server]\n{TOKEN}", GUARDED.replace("ab", "cd"), GUARDED + "[spaces.more]\n"])
def test_reload_takes_other_tokens(root: Root, after: str) -> None:
    """As long as there are some."""
    config = root.load(GUARDED)
    (root.folder / "spaces.toml").write_text(after)

    assert reload(config) == root.load(after)
