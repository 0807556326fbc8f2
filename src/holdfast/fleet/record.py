"""A leader's record, as it stands in the cell of its election."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any, NamedTuple

from ..core import chronicle
from ..core.chronicle import Change


class Record(NamedTuple):
    """``since`` when it leads, in seconds since 1970; the changes that are kept, the last one last."""

    token: int
    since: float
    state: str
    payload: bytes
    changes: tuple[Change, ...]


def read_record(value: bytes) -> Record | None:
    """None for one that we cannot read: another release wrote it, or it is something else altogether."""
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
        fields: dict[str, Any] = json.loads(value)
        payload = base64.b64decode(fields.get("payload", ""))
        changes = tuple(chronicle.load(fields.get("changes", ())))
        return Record(fields["token"], float(fields["since"]), fields.get("state", ""), payload, changes)
    return None
