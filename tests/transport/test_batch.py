# SPDX-License-Identifier: MIT
"""Many small transfers in one call: what they move, what becomes of failures, many threads."""

import errno
import random
import threading

import pytest

from vscsi.domain.memory import OutOfMemoryError
from vscsi.target.base import Status
from vscsi.transport.batch import Batch, Combiner
from vscsi.transport.initiator import TransportError
from vscsi.wire.sense import SenseKey, parse_sense

LENGTH, DEPTH = 1024, 24
SIZE = 1 << 20
HANG_S = 30
RINGS = ["srp", "vscsiif", "blkif", "blkif?segments=blocks", "srp?queues=2"]


@pytest.fixture
def server(serve):
    return serve(workers=4, queues=2)


@pytest.fixture(params=RINGS)
def batch(request, server):
    with server.connect(request.param) as hba:
        lun = hba.lun(0)
        block = lun.capacity().block_length
        batch = Batch(hba.initiator, lun.address, block, length=LENGTH, depth=DEPTH)
        yield batch
        batch.close()
        batch.close()


def test_a_batch_moves_what_it_is_told_to(batch, server):
    """As a model does it; vscsiif has fewer slots than that."""
    numbers = random.Random(4)
    model = bytearray(server.store.content)
    for _ in range(20):
        places = numbers.sample(range(SIZE // LENGTH), numbers.randrange(1, DEPTH + 1))
        operations = [(numbers.random() < 0.5, place) for place in places]
        buffers = batch.buffers
        for (write, number), buffer in zip(operations, buffers, strict=False):
            buffer[:] = numbers.randbytes(LENGTH)
            if write:
                model[number * LENGTH : (number + 1) * LENGTH] = buffer
        assert batch.run(operations) == {}
        assert server.store.content == model
        for (_, number), buffer in zip(operations, buffers, strict=False):
            assert buffer == model[number * LENGTH : (number + 1) * LENGTH]


def test_a_command_that_does_not_end_well_is_named(batch, server):
    beyond = SIZE // LENGTH
    server.store.errors["write"] = errno.EIO
    failed = batch.run([(False, 1), (True, 2), (False, beyond), (False, 3)])
    assert set(failed) == {1, 2}
    assert all(command.status is Status.CHECK_CONDITION for command in failed.values())
    assert parse_sense(failed[1].sense).key == SenseKey.MEDIUM_ERROR
    server.store.errors.clear()
    assert batch.run([(True, 2)]) == {}


def test_nothing_is_not_sent_and_too_much_is_refused(batch, server):
    server.store.log.clear()
    assert batch.run([]) == {}
    with pytest.raises(ValueError, match="at a time"):
        batch.run([(False, 0)] * (DEPTH + 1))
    assert not server.store.log
    assert batch.run([(False, 0)] * DEPTH) == {}


def test_too_large_a_batch_leaves_nothing_behind(server):
    with server.connect("srp") as hba:
        lun = hba.lun(0)
        block = lun.capacity().block_length
        with pytest.raises(OutOfMemoryError):
            Batch(hba.initiator, lun.address, block, length=1 << 20, depth=64)
        Batch(hba.initiator, lun.address, block, length=1 << 20, depth=2).close()
        assert lun.read(0, 1)


@pytest.mark.parametrize("ring", ["srp", "blkif"])
def test_threads_share_batches(server, ring):
    """Each has a part of the disk to itself, and finds there what it wrote."""
    with server.connect(ring) as hba:
        lun = hba.lun(0)
        block = lun.capacity().block_length
        batch = Batch(hba.initiator, lun.address, block, length=LENGTH, depth=DEPTH)
        combiner = Combiner(batch, LENGTH)
        assert combiner.most == DEPTH * LENGTH
        wrong = []

        def work(part):
            numbers = random.Random(part)
            span = SIZE // 8
            model = bytearray(span)
            for _ in range(60):
                count = numbers.randrange(1, 7) * LENGTH
                at = numbers.randrange(0, span - count, LENGTH)
                if numbers.random() < 0.5:
                    model[at : at + count] = data = bytearray(numbers.randbytes(count))
                    good = combiner.transfer(True, part * span + at, memoryview(data))
                else:
                    data = bytearray(count)
                    good = combiner.transfer(False, part * span + at, memoryview(data))
                if not good or data != model[at : at + count]:
                    wrong.append((part, at, count, good))

        threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
        assert wrong == []
        # What fails is told to whom it concerns alone.
        assert not combiner.transfer(False, SIZE, memoryview(bytearray(LENGTH)))
        assert combiner.transfer(False, 0, memoryview(bytearray(LENGTH)))
        combiner.close()


def test_the_end_of_the_channel_is_everybodys(server):
    with server.connect("srp") as hba:
        lun = hba.lun(0)
        block = lun.capacity().block_length
        batch = Batch(hba.initiator, lun.address, block, length=LENGTH, depth=DEPTH)
        combiner = Combiner(batch, LENGTH)
        server.store.hold()
        ended = []

        def work():
            with pytest.raises(TransportError):
                combiner.transfer(False, 0, memoryview(bytearray(LENGTH)))
            ended.append(True)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        server.store.wait_held()
        hba.initiator._break("the test ends the channel")
        server.store.release()
        for thread in threads:
            thread.join(HANG_S)
        assert ended == [True] * 4
        combiner.close()
