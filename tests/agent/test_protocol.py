"""Lines as JavaScript writes them."""

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
def test_text_cut_inside_a_surrogate_pair_is_text_still(written: str, read: str) -> None:
    line = '{"type":"result","user_message_uuids":["u"],"result":"' + written + '"}'
    message = wire.parse(line.encode()).message
    assert isinstance(message, wire.Result) and message.text == read


@pytest.mark.parametrize("line", [b"", b"\\", b'{"type":"result', b'{"type":"result"\\ud83d}', b'"\\ud83d"', b"[1]"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.parse(line)
