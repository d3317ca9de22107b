# SPDX-License-Identifier: MIT
"""Captures of a running server: who may have one, and that no reader can hurt it."""

import io
import os
import threading

import pytest

import vscsi
from vscsi.capture import live as live_module
from vscsi.capture.choice import Choice
from vscsi.capture.live import LiveCapture
from vscsi.domain.base import StoreError
from vscsi.domain.local import LocalGuest, LocalMessage, connect_store
from vscsi.wire.errors import SetupError
from vscsi.wire.record import Protocol

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


class Copying:
    """A live capture that is being copied into memory."""

    def __init__(self, directory, choice=None):
        self.capture = LiveCapture(directory, choice)
        self.output = io.BytesIO()
        self.thread = threading.Thread(target=self.capture.copy, args=(self.output,))
        self.thread.start()

    def ended(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.capture.close()
        return self.output.getvalue()

    def stop(self):
        self.capture.stop()
        return self.ended()


def work(served, kind="srp", turns=5):
    with vscsi.connect(f"{kind}:{served.directory}") as hba:
        for turn in range(turns):
            hba.lun(0).write(turn, bytes(512))


def test_a_capture_has_what_passes_between_start_and_stop(serve, joined, read):
    served = serve()
    work(served)
    copying = Copying(served.directory)
    work(served, "vscsiif")
    data = copying.stop()
    work(served)
    exchanges = joined(data)
    assert {each.captured.record.protocol for each in exchanges} == {Protocol.VSCSIIF}
    writes = [each for each in exchanges if each.request.words.startswith("WRITE")]
    assert [each.moved for each in writes] == [512] * 5
    found, reader = read(data)
    assert copying.capture.recorded == len(found)
    assert copying.capture.dropped == reader.dropped == 0


def test_captures_run_beside_each_other_each_with_its_protocol(serve, read):
    served = serve()
    copies = {only: Copying(served.directory, Choice(only)) for only in (None, *Protocol)}
    for kind in ("srp", "vscsiif", "blkif"):
        work(served, kind)
    seen = {
        only: [message.record.protocol for message in read(copying.stop())[0]]
        for only, copying in copies.items()
    }
    assert set(seen[None]) == set(Protocol)
    for only in Protocol:
        assert seen[only] == [protocol for protocol in seen[None] if protocol == only] != []


def test_when_the_server_ends_the_capture_is_complete(serve, read):
    served = serve()
    copying = Copying(served.directory)
    work(served)
    served.stop()
    found, _ = read(copying.ended())
    assert len(found) == copying.capture.recorded > 10


def test_a_guest_may_not_capture(serve):
    served = serve()
    guest = LocalGuest(served.directory)
    with pytest.raises(StoreError, match="EACCES"):
        guest.ask(LocalMessage.CAPTURE, b"start")
    guest.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"start nfs",
        b"start srp",
        b"start protocol=nfs",
        b"start payload=65537",
        b"start opcode=read-nothing",
        b"start status=fine",
        b"start lba=9-8",
        b"start lun=-1",
        b"stop",
        b"stop x",
        b"stop 0 ",
        b"\xff",
        b"go",
    ],
)
def test_nonsense_is_refused(serve, payload):
    with connect_store(serve().directory) as client:
        with pytest.raises(StoreError, match="EINVAL"):
            client.request(LocalMessage.CAPTURE, payload)
        with pytest.raises(StoreError, match="ENOENT"):
            client.request(LocalMessage.CAPTURE, b"stop 99")


def test_captures_are_limited_and_a_reader_that_is_gone_makes_room(serve):
    served = serve()
    captures = [LiveCapture(served.directory) for _ in range(live_module.MAX_CAPTURES)]
    with pytest.raises(SetupError, match="EBUSY"):
        LiveCapture(served.directory)
    captures.pop().close()
    replaced = None
    for _ in range(10_000):  # its end of the pipe is noticed without any message
        try:
            replaced = LiveCapture(served.directory)
            break
        except SetupError:
            continue
    assert replaced is not None
    for capture in (*captures, replaced):
        capture.close()


def test_a_reader_that_stalls_or_dies_does_not_disturb_the_server(serve, monkeypatch):
    monkeypatch.setattr("vscsi.capture.writer.MAX_WAITING_BYTES", 20_000)
    monkeypatch.setattr("vscsi.capture.writer.END_S", 0.0)
    served = serve()
    stalled = LiveCapture(served.directory)
    killed = LiveCapture(served.directory)
    os.close(killed._pipe)
    killed._pipe = os.open(os.devnull, os.O_RDONLY)
    work(served, turns=400)
    served.stop()
    stalled.copy(io.BytesIO())
    assert stalled.recorded > 0
    stalled.close()
    killed.close()


def test_without_a_server_there_is_nothing_to_capture(tmp_path):
    with pytest.raises(SetupError, match="is `vscsi serve"):
        LiveCapture(tmp_path)
