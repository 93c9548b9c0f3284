"""Parsing of lines as JavaScript writes them."""

import pytest

from sessiond.agent import protocol as wire

LINES = {
    r"\ud83d": "\ufffd",
    r"\uDE00": "\ufffd",
    r"\ud83d\ud83d\ude00\ude00": "\ufffd\U0001f600\ufffd",
    r"\ud83d\n": "\ufffd\n",
    r"\\ud83d \ud83d": r"\ud83d " + "\ufffd",
    r"\u00e9 \" \ud83d": 'é " \ufffd',
}


@pytest.mark.parametrize(("written", "read"), LINES.items())
def test_text_cut_inside_a_surrogate_pair_is_still_read(written: str, read: str) -> None:
    line = '{"type":"result","user_message_uuids":["u"],"result":"' + written + '"}'
    message = wire.parse(line.encode()).message
    assert isinstance(message, wire.Result) and message.text == read


NO_TEXT = b'{"type":"result","user_message_uuids":["u"],"result":"x","terminal_reason":7}'


@pytest.mark.parametrize(
    "line", [NO_TEXT, b"", b"\\", b'{"type":"result', b'{"type":"result"\\ud83d}', b'"\\ud83d"', b"[1]"]
)
def test_a_malformed_message_is_refused(line: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.parse(line)


def nested(kind: str) -> bytes:
    return f'{{"type":"{kind}","message":{{"input":'.encode() + b'{"a":' * 1100 + b"1" + b"}" * 1102


@pytest.mark.parametrize("kind", ["assistant", "user", "stream_event"])
def test_content_nested_too_deeply_is_not_a_protocol_error(kind: str) -> None:
    assert wire.parse(nested(kind)) == wire.Line(wire.Other(kind), None)


@pytest.mark.parametrize("line", [nested("result"), nested("assistant")[:2000]])
def test_other_messages_may_not_be_nested_too_deeply(line: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.parse(line)
