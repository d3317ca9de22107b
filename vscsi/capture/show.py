# SPDX-License-Identifier: MIT
"""An exchange in words, or as values for JSON."""

from vscsi.capture.decode import COMPLETE, Answer, Kind
from vscsi.capture.exchange import Exchange
from vscsi.target.base import Status
from vscsi.wire.record import Protocol, Way

_NS_PER_S = 10**9
_S_PER_DAY = 86400


def line(exchange: Exchange) -> str:
    """Return one line: UTC time, path, domain and device, LUN, tag, request -> answer.

    An answer says status, sense, bytes moved, residual and latency.
    """
    record, request, answer = exchange.captured.record, exchange.request, exchange.answer
    words = [
        _time_of_day(exchange.captured.time_ns),
        _path(record.protocol),
        f"domain {record.domain} device {record.device}",
    ]
    if record.queue:
        words.append(f"queue {record.queue}")
    if request is not None and request.lun:
        words.append(f"lun {request.lun}")
    if (tag := _tag(exchange)) is not None:
        words.append(f"tag 0x{tag:x}")
    if exchange.kind is Kind.MALFORMED:
        words.append("MALFORMED")
    if request is not None:
        words.append(request.words)
        if not request.answered:
            return " ".join(words)
    else:
        words.append("(request not captured)")
    words.append("->")
    if answer is None:
        words.append("NO ANSWER" + (f" ({exchange.fate})" if exchange.fate else ""))
        return " ".join(words)
    return " ".join(words) + " " + ", ".join(_answer(exchange, answer))


def values(exchange: Exchange) -> dict[str, object]:
    """Return an exchange's values; what is not known is None. Times are nanoseconds since 1970."""
    captured, request, answer = exchange.captured, exchange.request, exchange.answer
    record = captured.record
    sense = answer.sense if answer is not None else None
    return {
        "time_ns": captured.time_ns,
        "path": _path(record.protocol),
        "domain": record.domain,
        "device": record.device,
        "queue": record.queue,
        "from": "initiator" if _asked_by_initiator(exchange) else "target",
        "ring_index": record.ring_index,
        "in_flight": record.in_flight,
        "kind": exchange.kind.value,
        "lun": request.lun or None if request is not None else None,
        "tag": _tag(exchange),
        "request": request.words if request is not None else None,
        "cdb": request.cdb.hex() if request is not None and request.cdb else None,
        "data_out": request.data_out if request is not None else None,
        "data_in": request.data_in if request is not None else None,
        "answered": answer is not None,
        "fate": exchange.fate or None,
        "status": outcome(exchange, answer) if answer is not None else None,
        "sense": None
        if sense is None
        else {
            "key": sense.key,
            "asc": sense.asc,
            "ascq": sense.ascq,
            "words": sense.describe(),
        },
        "bytes": exchange.moved,
        "residual": answer.residual if answer is not None else None,
        "latency_ns": exchange.latency_ns,
    }


def _answer(exchange: Exchange, answer: Answer) -> list[str]:
    words = [outcome(exchange, answer)]
    if answer.sense is not None:
        words.append(answer.sense.describe())
    if exchange.moved is not None:
        words.append(f"{exchange.moved} bytes")
    if answer.residual > 0:
        words.append(f"residual {answer.residual}")
    elif answer.residual < 0:
        words.append(f"buffer {-answer.residual} bytes too short")
    if exchange.latency_ns is not None:
        words.append(f"{exchange.latency_ns / 1000:.1f} us")
    return words


def outcome(exchange: Exchange, answer: Answer) -> str:
    """Return an answer's status: SCSI's, unless the protocol has something to say beside it."""
    # With a response code of 0 a command's status counts, a management function's has no meaning.
    complete = answer.outcome == COMPLETE and exchange.kind is Kind.COMMAND
    if answer.status is None or (answer.outcome and not complete):
        return answer.outcome
    try:
        return Status(answer.status).name.replace("_", " ")
    except ValueError:
        return f"status 0x{answer.status:02x}"


def _asked_by_initiator(exchange: Exchange) -> bool:
    to_target = bool(exchange.captured.record.direction == Way.TO_TARGET)
    return to_target if exchange.request is not None else not to_target


def _tag(exchange: Exchange) -> int | None:
    side = exchange.request or exchange.answer
    return side.tag if side is not None else None


def _path(protocol: int) -> str:
    try:
        return Protocol(protocol).name.lower()
    except ValueError:
        return f"protocol {protocol}"


def _time_of_day(time_ns: int) -> str:
    seconds, fraction = divmod(time_ns, _NS_PER_S)
    minutes, second = divmod(seconds % _S_PER_DAY, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}.{fraction:09}"
