"""What an error tells whoever must act on a disk that lost or changed what was durable: one text, wherever it is found."""

from __future__ import annotations

from typing import Final

WHAT_TO_DO: Final = (
    "The disk lost or changed what was durable, so this node must not go on with it, and with an older copy of its "
    "directory or an empty one it would break what it has promised: its peers refuse both. Keep the directory as it is. "
    "The other replicas go on without this node; what they hold of it they keep, and their logs grow until it is back. "
    "If the disk itself can be repaired or read by other means, put its newest state back."
)
