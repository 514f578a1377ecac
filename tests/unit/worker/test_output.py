"""What handlers print: whole lines, the call that they belong to, and no more than a call may print."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.worker import output
from runtime.worker.output import BATCH, LEAST, LIMIT, LINE_LIMIT, TRUNCATED, Output, Sink

ROOT = Path(__file__).parents[3]

Sent = list[tuple[int, int, str]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What goes to the channel: stream, level and text of each frame."""
    return listen(monkeypatch)


def listen(patch: pytest.MonkeyPatch) -> Sent:
    """A sink of its own, and what it is given."""
    frames: Sent = []
    sink = Sink()
    sink.send = lambda stream, level, text: frames.append((stream, level, text.decode()))
    sink.running = 7
    patch.setattr(output, "sink", sink)
    return frames


def test_whole_lines_are_given_out_at_once(sent: Sent) -> None:
    """Several in one write are one frame; the last newline is not part of it."""
    out = Output(1, logging.INFO)

    assert out.write("one\ntwo\n") == 8

    assert sent == [(7, logging.INFO, "one\ntwo")]


def test_a_line_in_pieces_is_given_out_when_it_is_whole(sent: Sent) -> None:
    """And what follows its end waits in turn."""
    out = Output(2, logging.WARNING)

    for piece in ("a", "b", "c\nd", "e"):
        out.write(piece)
    assert sent == [(7, logging.WARNING, "abc")]

    out.finish(7)
    assert sent[1:] == [(7, logging.WARNING, "de")]
    out.finish(7)
    assert len(sent) == 2


@given(st.lists(st.text(st.sampled_from("ab\n"), max_size=8), max_size=12))
def test_pieces_make_no_difference(pieces: list[str]) -> None:
    """However a text is cut up, the same lines are given out; a blank one alone is not worth a frame."""
    with pytest.MonkeyPatch.context() as patch:
        frames = listen(patch)
        out = Output(1, logging.INFO)
        for piece in pieces:
            out.write(piece)
        out.finish(7)

    given_out = "\n".join(text for _, _, text in frames).split("\n")
    assert [line for line in given_out if line] == [line for line in "".join(pieces).split("\n") if line]


def test_each_call_has_its_own_line(sent: Sent) -> None:
    """Calls on one event loop do not finish each other's."""
    out = Output(1, logging.INFO)
    for stream, piece in ((1, "first "), (2, "second "), (1, "call\n"), (2, "call\n")):
        token = output.stream_of_call.set(stream)
        out.write(piece)
        output.stream_of_call.reset(token)

    assert sent == [(1, logging.INFO, "first call"), (2, logging.INFO, "second call")]


def test_a_long_line_is_cut(sent: Sent) -> None:
    """It does not wait for its end for ever."""
    out = Output(1, logging.INFO)

    out.write("x" * (LINE_LIMIT + 1))

    assert sent == [(7, logging.INFO, "x" * (LINE_LIMIT + 1))]


def test_frames_are_bounded(sent: Sent) -> None:
    """A text of any length goes out in several."""
    output.sink.emit(7, 20, "y" * (2 * BATCH + 1))

    assert [len(text) for _, _, text in sent] == [BATCH, BATCH, 1]


def test_a_call_may_print_so_much(sent: Sent) -> None:
    """The rest is dropped, which is said once; other calls have their own measure."""
    out = Output(1, logging.INFO)
    for _ in range(4):
        out.write("z" * (LIMIT // 2) + "\n")

    text = "".join(text for _, _, text in sent)
    assert text.count("z") == LIMIT
    assert text.count(TRUNCATED) == 1
    assert output.sink.is_full()

    output.sink.running = 8
    assert not output.sink.is_full()
    out.write("other\n")
    assert sent[-1] == (8, logging.INFO, "other")


def test_short_lines_have_their_price(sent: Sent) -> None:
    """Each counts as if it had a certain length, so their number is bounded as well."""
    out = Output(1, logging.INFO)
    for _ in range(LIMIT // LEAST * 2):
        out.write("y\n")

    assert LIMIT // LEAST <= len(sent) <= LIMIT // LEAST + 2
    assert sent[-1][2].endswith(TRUNCATED)


def test_a_finished_call_is_forgotten(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last partial line is given out; what is printed after it belongs to no call."""
    out = Output(1, logging.INFO)
    monkeypatch.setattr(output, "stdout", out)
    out.write("x" * LIMIT + "more\n")
    out.write("last")
    output.finish(7)
    out.write("later\n")

    assert output.sink.printed == {0: LEAST}
    assert sent[-1] == (0, logging.INFO, "later")
    output.finish(8)
    assert output.sink.printed == {}


def test_bytes_are_text_of_the_same_stream(sent: Sent) -> None:
    """Characters may be split between writes; what is not UTF-8 is shown escaped."""
    buffer = Output(1, logging.INFO).buffer

    assert buffer.write("é".encode()[:1]) == 1
    assert buffer.write(memoryview("é".encode()[1:] + b"\xff\n")) == 3
    buffer.flush()

    assert sent == [(7, logging.INFO, "é\\xff")]


@given(st.binary(max_size=50), st.integers(0, 50))
def test_any_bytes_can_be_printed(data: bytes, cut: int) -> None:
    """And arrive, whatever they are and wherever they are cut."""
    with pytest.MonkeyPatch.context() as patch:
        frames = listen(patch)
        buffer = Output(1, logging.INFO).buffer
        assert buffer.write(data[:cut]) + buffer.write(data[cut:]) == len(data)
        buffer.write(b"\n")

    given_out = "\n".join(text for _, _, text in frames).split("\n")
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    assert [line for line in given_out if line] == [line for line in lines if line]


def test_bytes_over_the_limit_are_not_even_decoded(sent: Sent) -> None:
    """They are taken, though."""
    out = Output(1, logging.INFO)
    out.write("z" * (LIMIT + 10) + "\n")
    before = len(sent)

    assert out.buffer.write(b"more\n") == 5

    assert len(sent) == before


def test_a_wrapper_that_is_closed_closes_nothing(sent: Sent) -> None:
    """`sys.stdout = TextIOWrapper(sys.stdout.buffer)` is common, and its end closes what it wraps."""
    out = Output(1, logging.INFO)
    wrapper = io.TextIOWrapper(out.buffer, encoding="utf-8", line_buffering=True)
    print("wrapped", file=wrapper)
    wrapper.close()
    out.buffer.write(b"still open\n")
    out.write("this, too\n")

    assert [text for _, _, text in sent] == ["wrapped", "still open", "this, too"]


def test_it_is_a_text_stream_like_others(sent: Sent) -> None:
    """As far as code that configures sys.stdout looks."""
    out = Output(2, logging.WARNING)
    out.reconfigure(line_buffering=True, encoding="utf-8", errors="replace")

    assert out.writable()
    assert not out.readable()
    assert not out.isatty()
    assert (out.fileno(), out.buffer.fileno(), out.name, out.encoding) == (2, 2, "<stderr>", "utf-8")
    with pytest.raises(TypeError, match="must be str, not bytes"):
        out.write(b"bytes")  # type: ignore[arg-type]


def test_records_become_lines(sent: Sent) -> None:
    """With their level; one that cannot be formatted harms nobody."""
    handler = output.log_handler
    handler.emit(logging.LogRecord("shop", logging.ERROR, __file__, 1, "wrong: %s", (1,), None))
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    handler.emit(logging.LogRecord("shop", logging.ERROR, __file__, 1, "wrong: %d", ("x",), None))
    logging.raiseExceptions = raising

    assert sent == [(7, logging.ERROR, "shop: wrong: 1")]


def run(script: str) -> tuple[str, str]:
    """What a script writes to its standard output and error."""
    text = f"import logging, os, sys\nfrom runtime.worker import output\n{script}"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_before_there_is_a_channel_text_goes_to_the_descriptors() -> None:
    """And so it does where one of them was closed, as far as anybody can read it."""
    script = "output.install()\nprint('out')\nprint('err', file=sys.stderr)\nos.close(1)\nprint('nowhere')"

    assert run(script) == ("out\n", "err\n")


def test_a_forked_child_writes_to_the_descriptors_again() -> None:
    """It has let go of the channel, which is its parent's."""
    script = """
output.install()
print("partial", end="")
output.attach(lambda stream, level, text: os.write(2, b"channel " + text), print, lambda: os.write(2, b"let go "))
print("parent")
if os.fork() == 0:
    print("child")
    os._exit(0)
os.wait()
"""
    out, err = run(script)

    assert out == "partial\nchild\n"
    assert err == "channel parentlet go "


@pytest.mark.parametrize(
    ("set_up", "expected"),
    [
        ("", "shop: said\n"),
        ("logging.basicConfig(level='INFO', format='own %(message)s', stream=sys.stdout)", "own said\n"),
        ("logging.getLogger().setLevel('ERROR')", ""),
        ("logging.getLogger().setLevel('DEBUG')", "shop: said\n"),
    ],
)
def test_logging_is_set_up_unless_the_function_did_it(set_up: str, expected: str) -> None:
    """Records of level INFO and up are collected by default."""
    script = f"output.install()\n{set_up}\noutput.install_logging()\nlogging.getLogger('shop').info('said')"

    assert run(script)[0] == expected


def test_a_stack_is_written_when_asked_for() -> None:
    """Also when the signal was blocked before."""
    script = """
import signal
fd = os.memfd_create("faults")
signal.pthread_sigmask(signal.SIG_BLOCK, {output.STACK_SIGNAL})
output.dump_stack_on_signal(fd)
os.kill(os.getpid(), output.STACK_SIGNAL)
print(os.pread(fd, 1000, 0).decode())
"""

    assert 'File "<string>"' in run(script)[0]


def test_closed_descriptors_are_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Who closed them cannot be read, and is not told so."""
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)

    output._write_raw(writer, "text")
