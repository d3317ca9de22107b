# SPDX-License-Identifier: MIT
"""System calls that the kernel refuses to one thread and to those that it starts (seccomp)."""

import ctypes
import os
import platform
import struct
import threading

import pytest

_NUMBERS = {
    "x86_64": {"fallocate": 285, "io_uring_setup": 425},
    "aarch64": {"fallocate": 47, "io_uring_setup": 425},
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x0005_0000, 0x7FFF_0000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _refuse(call, code):
    number = _NUMBERS.get(platform.machine(), {}).get(call)
    if number is None:
        pytest.skip(f"the number of {call} here is not known")
    instructions = ctypes.create_string_buffer(
        struct.pack("=HBBI", _LOAD, 0, 0, 0)  # the system call's number
        + struct.pack("=HBBI", _JUMP_IF_EQUAL, 0, 1, number)
        + struct.pack("=HBBI", _RETURN, 0, 0, _ERRNO | code)
        + struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)
    )
    program = _Program(4, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _FILTER, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call_without(system_call, code, function):
    """Call a function in a thread that is refused a system call; return what it returns."""
    outcome = []

    def run():
        try:
            _refuse(system_call, code)
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
