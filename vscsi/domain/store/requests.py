# SPDX-License-Identifier: MIT
"""What each type of message asks for: from a payload to calls on a session, and to a reply."""

from collections.abc import Callable, Sequence

from vscsi.domain.base import StoreError
from vscsi.domain.store import paths
from vscsi.domain.store.permissions import PRIVILEGED, Access, Permissions
from vscsi.domain.store.session import Session
from vscsi.wire.xenstore import PAYLOAD_MAX, MessageType

_NUL = b"\0"
_OK = b"OK\0"


def handle(session: Session, message_type: int, transaction_id: int, payload: bytes) -> bytes:
    """Execute one request and return the payload of its reply.

    Raises StoreError with xenstored's code, ENOSYS for a type that is none of ours. The payload
    is the client's and untrusted.
    """
    handler = _HANDLERS.get(message_type)
    if handler is None:
        raise StoreError("ENOSYS")
    with session.store.lock:
        reply = handler(session, transaction_id, payload)
    if len(reply) > PAYLOAD_MAX:
        raise StoreError("E2BIG")
    return reply


def _read(session: Session, transaction_id: int, payload: bytes) -> bytes:
    path = session.resolve(_one(payload))
    with session.transaction(transaction_id) as transaction:
        return transaction.node(path, Access.READ).value


def _write(session: Session, transaction_id: int, payload: bytes) -> bytes:
    path, nul, value = payload.partition(_NUL)
    if not nul:
        raise StoreError("EINVAL")
    with session.transaction(transaction_id) as transaction:
        transaction.write(session.resolve(path), value)
    return _OK


def _mkdir(session: Session, transaction_id: int, payload: bytes) -> bytes:
    path = session.resolve(_one(payload))
    with session.transaction(transaction_id) as transaction:
        transaction.mkdir(path)
    return _OK


def _rm(session: Session, transaction_id: int, payload: bytes) -> bytes:
    path = session.resolve(_one(payload))
    with session.transaction(transaction_id) as transaction:
        transaction.rm(path)
    return _OK


def _directory(session: Session, transaction_id: int, payload: bytes) -> bytes:
    path = session.resolve(_one(payload))
    with session.transaction(transaction_id) as transaction:
        return _joined(transaction.node(path, Access.READ).children)


def _directory_part(session: Session, transaction_id: int, payload: bytes) -> bytes:
    """Reply generation and as many whole names as fit; an empty name ends the last part."""
    path, offset_text = _strings(payload, 2)
    offset = _number(offset_text)
    with session.transaction(transaction_id) as transaction:
        node = transaction.node(session.resolve(path), Access.READ)
    names = _joined(node.children)
    if offset > len(names):
        raise StoreError("EINVAL")
    head = f"{node.generation}\0".encode("ascii")
    part = names[offset:] + _NUL
    room = PAYLOAD_MAX - len(head)
    if len(part) > room:
        part = part[: part.rindex(_NUL, 0, room) + 1]
    return head + part


def _get_perms(session: Session, transaction_id: int, payload: bytes) -> bytes:
    path = session.resolve(_one(payload))
    with session.transaction(transaction_id) as transaction:
        return _joined(transaction.node(path, Access.READ).permissions.format())


def _set_perms(session: Session, transaction_id: int, payload: bytes) -> bytes:
    path, *entries = _strings(payload, 2, more=True)
    try:
        permissions = Permissions.parse([entry.decode("ascii") for entry in entries])
    except UnicodeDecodeError:
        raise StoreError("EINVAL") from None
    with session.transaction(transaction_id) as transaction:
        transaction.set_permissions(session.resolve(path), permissions)
    return _OK


def _watch(session: Session, _: int, payload: bytes) -> bytes:
    path, token, *_reserved = _strings(payload, 2, more=True)
    session.watch(path, token)
    return _OK


def _unwatch(session: Session, _: int, payload: bytes) -> bytes:
    path, token, *_reserved = _strings(payload, 2, more=True)
    session.unwatch(path, token)
    return _OK


def _reset_watches(session: Session, _: int, _payload: bytes) -> bytes:
    session.reset()
    return _OK


def _transaction_start(session: Session, transaction_id: int, _: bytes) -> bytes:
    if transaction_id:
        raise StoreError("EBUSY")
    return f"{session.start()}\0".encode("ascii")


def _transaction_end(session: Session, transaction_id: int, payload: bytes) -> bytes:
    verdict = _one(payload)
    if verdict not in (b"T", b"F"):
        raise StoreError("EINVAL")
    session.end(transaction_id, commit=verdict == b"T")
    return _OK


def _get_domain_path(_session: Session, _: int, payload: bytes) -> bytes:
    return f"{paths.domain_path(_domain(payload))}\0".encode("ascii")


def _is_domain_introduced(session: Session, _: int, payload: bytes) -> bytes:
    domain = _domain(payload)
    if session.domain not in (PRIVILEGED, domain):  # XSA-115: not a way to count the others
        raise StoreError("EACCES")
    return b"T\0" if session.store.is_introduced(domain) else b"F\0"


def _control(session: Session, _: int, payload: bytes) -> bytes:
    if session.domain != PRIVILEGED:
        raise StoreError("EACCES")
    command, *_parameters = _strings(payload, 1, more=True)
    if command == b"help":
        return b"check\nhelp\0"
    if command == b"check":
        return _OK if session.store.tree.is_consistent() else b"BROKEN\0"
    raise StoreError("EINVAL")


_HANDLERS: dict[int, Callable[[Session, int, bytes], bytes]] = {
    MessageType.CONTROL: _control,
    MessageType.DIRECTORY: _directory,
    MessageType.READ: _read,
    MessageType.GET_PERMS: _get_perms,
    MessageType.WATCH: _watch,
    MessageType.UNWATCH: _unwatch,
    MessageType.TRANSACTION_START: _transaction_start,
    MessageType.TRANSACTION_END: _transaction_end,
    MessageType.GET_DOMAIN_PATH: _get_domain_path,
    MessageType.WRITE: _write,
    MessageType.MKDIR: _mkdir,
    MessageType.RM: _rm,
    MessageType.SET_PERMS: _set_perms,
    MessageType.IS_DOMAIN_INTRODUCED: _is_domain_introduced,
    MessageType.RESET_WATCHES: _reset_watches,
    MessageType.DIRECTORY_PART: _directory_part,
}


def _strings(payload: bytes, least: int, *, more: bool = False) -> list[bytes]:
    """Split a payload of NUL-terminated strings; StoreError("EINVAL") if there are too few."""
    strings = payload.split(_NUL)
    if strings.pop() != b"" or len(strings) < least or (len(strings) > least and not more):
        raise StoreError("EINVAL")
    return strings


def _one(payload: bytes) -> bytes:
    return _strings(payload, 1)[0]


def _number(text: bytes) -> int:
    """Read a decimal number; bounded, for int() takes time that grows with the square."""
    if not text.isdigit() or len(text) > 10:
        raise StoreError("EINVAL")
    return int(text)


def _domain(payload: bytes) -> int:
    domain = _number(_one(payload))
    if domain > 0xFFFF:
        raise StoreError("EINVAL")
    return domain


def _joined(strings: Sequence[str]) -> bytes:
    return "".join(f"{string}\0" for string in strings).encode("ascii")
