# SPDX-License-Identifier: MIT
"""What became of a replay, as values of JSON (docs/capture.md says what each key means)."""

from dataclasses import asdict
from typing import Any

from vscsi.capture.replay.run import Replay

FORMAT_VERSION = 1
"""Of the JSON; raised when a key changes its meaning or goes."""


def report(replay: Replay, *, late_rows: int) -> dict[str, Any]:
    """Return everything. late_rows: commands that came too late to find their place."""
    judge, elapsed_s = replay.judge, replay.elapsed_ns / 1e9
    recorded_s = replay.recorded_ns / 1e9
    return {
        "format": "vscsi-replay",
        "version": FORMAT_VERSION,
        "commands": replay.sent,
        "left_out": dict(replay.left_out.most_common()),
        "out_of_order": late_rows,
        "sent_again": replay.sent_again,
        "task_management": dict(replay.management),
        "aborted": replay.aborted,
        "elapsed_s": elapsed_s,
        "recorded_s": recorded_s,
        "rate_per_s": replay.sent / elapsed_s if elapsed_s else None,
        "recorded_rate_per_s": replay.sent / recorded_s if recorded_s else None,
        "most_in_flight": replay.pace.most_in_flight,
        "lag_us": replay.lag.us(),
        "latency_us": [
            {
                "opcode": kind.opcode,
                "service_action": kind.service_action,
                "name": name,
                "count": kind.sent,
                "recorded": kind.recorded.us(),
                "replayed": kind.replayed.us(),
            }
            for name, kind in sorted(
                judge.kinds.items(), key=lambda each: each[1].sent, reverse=True
            )
        ],
        "answers": {
            "compared": judge.compared,
            "not_comparable": judge.not_comparable,
            "unit_attentions": judge.attentions,
            "different": dict(judge.counts),
            "first": [asdict(each) for each in judge.differences],
        },
        "data": {"compared_bytes": judge.checked_bytes, "unknown_bytes": judge.unchecked_bytes},
        "made_up_writes": judge.made_up,
        "interrupted": replay.stopped,
        "failure": replay.failure or None,
    }
