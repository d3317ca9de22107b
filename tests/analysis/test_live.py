# SPDX-License-Identifier: MIT
"""Figures of a window against the workload that a synthetic capture was made of."""

import io
import os
import select
import threading

import numpy as np
import pytest

from tests.capture import synthetic
from tests.capture.synthetic import START_NS, write_srp
from vscsi.analysis.live import MAX_FAILURES, Watch
from vscsi.analysis.slices import MAX_ROWS
from vscsi.capture.decode import Answer, decode
from vscsi.capture.reader import CaptureReader
from vscsi.capture.sources.ours.source import RingCapture
from vscsi.wire.errors import WireError

COMMANDS = 20_000
HANG_S = 60
ALL_S = 10.0
"""A slice that has all of them."""
LENGTH_NS = 200_000_000


@pytest.fixture(scope="module")
def capture():
    stream = io.BytesIO()
    load = write_srp(stream, COMMANDS)
    return stream.getvalue(), load


@pytest.fixture
def window(capture):
    watch = Watch(RingCapture(io.BytesIO(capture[0])), START_NS, ALL_S)
    watch.run()
    return watch.window()


def test_a_window_has_the_figures_of_its_commands(capture, window):
    load = capture[1]
    (disk,) = window.disks
    writes, reads = load[load["write"]], load[~load["write"]]
    assert disk.total.count == COMMANDS
    assert [each.name for each in disk.commands] == ["READ(10)", "WRITE(10)"]
    for figures, rows in zip(disk.commands, (reads, writes), strict=True):
        assert figures.count == len(rows)
        assert figures.per_s == pytest.approx(len(rows) / window.seconds)
        moved = (rows["blocks"].astype(int) * 512)[~rows["failed"]].sum()
        assert figures.bytes_per_s == pytest.approx(moved / window.seconds)
        assert figures.errors == rows["failed"].sum()
        assert figures.unanswered == 0
    assert disk.outstanding_mean == pytest.approx(load["outstanding"].mean())
    assert disk.outstanding_max == load["outstanding"].max()
    assert disk.waiting.count == 0
    last_ns = int((load["time_ns"] + load["latency_ns"]).max())
    assert (window.time_ns, window.seconds) == (START_NS + 10 * 10**9, ALL_S)
    assert window.behind_s == pytest.approx((window.time_ns - last_ns) / 1e9)


def test_latencies_are_kept_to_one_in_a_thousand(capture, window):
    load = capture[1]
    (disk,) = window.disks
    every = load["latency_ns"] / 1000
    for figures, rows in ((disk.total, every), (disk.commands[1], every[load["write"]])):
        latency = figures.latency_us
        for name, thousandths in (("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999)):
            exact = np.sort(rows)[-(-len(rows) * thousandths // 1000) - 1]
            assert latency[name] == pytest.approx(exact, rel=0.002)
        assert latency["max"] == rows.max()
        assert latency["min"] == rows.min()


def test_the_last_failures_are_told(capture, window):
    load = capture[1]
    failed = load[load["failed"]]
    ended = np.sort(failed["time_ns"] + failed["latency_ns"])
    assert len(window.failures) == MAX_FAILURES
    told = {each.time_ns for each in window.failures}
    last = failed[failed["time_ns"] + failed["latency_ns"] >= ended[-MAX_FAILURES]]
    assert told == set(last["time_ns"].tolist())
    assert all("MEDIUM ERROR" in each.answer for each in window.failures)


def test_a_window_begins_anew(capture):
    watch = Watch(RingCapture(io.BytesIO(capture[0])), START_NS, ALL_S)
    watch.run()
    watch.window()
    (disk,) = watch.window().disks
    assert (disk.total.count, disk.total.latency_us, disk.commands) == (0, None, ())
    assert disk.outstanding_mean is None


@pytest.fixture
def steady(monkeypatch):
    """A capture of a command a millisecond; returns it and when each ended, in order."""

    def make(commands, seed):
        load = made(commands, seed)
        load["time_ns"] = START_NS + np.arange(commands) * 1_000_000
        load["latency_ns"] = 250_000 + np.arange(commands) % 7 * 100_000
        return load

    made = synthetic.make_workload
    monkeypatch.setattr(synthetic, "make_workload", make)
    stream = io.BytesIO()
    load = write_srp(stream, 3000)
    return stream.getvalue(), load["time_ns"] + load["latency_ns"]


def count_of(window):
    return sum(each.total.count for each in window.disks)


def test_the_rate_of_each_window_is_that_of_the_stream(steady):
    data, _ = steady
    since_ns = START_NS + 430_000_000  # what was there before is not the first window's
    watch = Watch(RingCapture(io.BytesIO(data)), since_ns, LENGTH_NS / 1e9)
    watch.end(since_ns + 2_300_000_000)  # nor is what comes after the end the last one's
    watch.run()
    windows = [watch.window() for _ in range(10)]
    windows.append(watch.window(slices=1))
    windows.append(watch.rest())
    assert [each.seconds for each in windows] == [0.2] * 11 + [pytest.approx(0.1)]
    assert [count_of(each) for each in windows] == [200] * 11 + [100]
    for number, each in enumerate(windows[:-1], 1):
        assert each.time_ns == since_ns + number * LENGTH_NS
        assert each.disks[0].total.per_s == pytest.approx(1000)
        assert 0 <= each.behind_s < 0.002


def test_windows_that_were_late_are_one(steady):
    watch = Watch(RingCapture(io.BytesIO(steady[0])), START_NS, 0.2)
    watch.run()
    one, other = watch.window(), watch.window(slices=3)
    assert (other.seconds, count_of(other)) == (pytest.approx(0.6), 600)
    assert other.disks[0].total.per_s == pytest.approx(1000)
    assert count_of(one) == 200


@pytest.mark.parametrize("set_s", [-3600, 3600])
def test_a_clock_that_is_set_hides_no_command(steady, set_s):
    watch = Watch(RingCapture(io.BytesIO(steady[0])), START_NS - set_s * 10**9, 0.2)
    watch.window()
    watch.run()
    assert sum(count_of(watch.window()) for _ in range(60)) == 3000


class Slow:
    """A pipe to read, which says when somebody has to wait for it."""

    def __init__(self):
        self.idle = threading.Event()
        self._read, self._write = os.pipe()

    def fileno(self):
        return self._read

    def read1(self, size):
        if not select.select([self._read], [], [], 0)[0]:
            self.idle.set()
        return os.read(self._read, size)

    read = read1

    def put(self, data):
        assert os.write(self._write, data) == len(data)

    def end(self):
        os.close(self._write)


def test_what_waits_for_its_answer_is_told_while_nothing_comes(capture):
    part = capture[0][: 1 << 15]
    open_tags, commands = set(), {}
    reader = CaptureReader(io.BytesIO(part))
    try:
        for captured in reader:
            message = decode(captured.record)
            if isinstance(message, Answer):
                open_tags.discard(message.tag)
            else:
                open_tags.add(message.tag)
                commands[message.tag] = message.words
    except WireError:
        pass  # it ends in the middle of a block
    assert open_tags
    stream = Slow()
    watch = Watch(RingCapture(stream), START_NS, ALL_S)
    reading = threading.Thread(target=watch.run)
    reading.start()
    try:
        assert stream.idle.wait(HANG_S)  # its first look, which found nothing
        stream.idle.clear()
        stream.put(part)
        assert stream.idle.wait(HANG_S)
        (disk,) = watch.window().disks
        assert disk.waiting.count == len(open_tags)
        assert disk.waiting.oldest == commands[min(open_tags)]
        assert disk.waiting.oldest_s > 0
    finally:
        stream.end()
        reading.join(HANG_S)
    # The end of the capture is no news: what was open has not failed.
    assert sum(each.total.unanswered for each in watch.rest().disks) == 0


def test_the_rows_of_a_window_are_bounded(capture, monkeypatch):
    monkeypatch.setattr("vscsi.analysis.slices.MAX_ROWS", 1)
    assert MAX_ROWS > 1
    watch = Watch(RingCapture(io.BytesIO(capture[0])), START_NS, ALL_S)
    watch.run()
    disks = watch.window().disks
    assert sum(each.total.count for each in disks) == COMMANDS
    assert [each.name for disk in disks for each in disk.commands] == ["READ(10)", "others"]


class Impatient(Slow):
    """One whose reads return None when there is nothing, and who counts how often that was."""

    def __init__(self):
        super().__init__()
        self.nothing = threading.Semaphore(0)

    def read1(self, size):
        if select.select([self._read], [], [], 0.01)[0]:
            return os.read(self._read, size)
        self.nothing.release()
        return None

    read = read1


def test_the_last_commands_are_told_though_nothing_follows():
    whole = io.BytesIO()
    write_srp(whole, 10)
    stream = Impatient()
    watch = Watch(RingCapture(stream), START_NS, ALL_S)
    reading = threading.Thread(target=watch.run)
    reading.start()
    try:
        stream.put(whole.getvalue())
        shown = 0
        while shown < 10:  # each time that nothing came, what came before has been counted
            assert stream.nothing.acquire(timeout=HANG_S)
            shown += count_of(watch.window())
        assert shown == 10
    finally:
        stream.end()
        reading.join(HANG_S)
