"""Log lines: for people, or one JSON object per line for programs. Never keys or values above DEBUG."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

_TEXT: Final = "%(asctime)s %(levelname)s %(node)s %(name)s: %(message)s"


class _NodeName(logging.Filter):
    """Every line says which node it is from: the lines of a lab come together in one place."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def filter(self, record: logging.LogRecord) -> bool:
        record.node = self._node
        return True


class JsonFormatter(logging.Formatter):
    """time (UTC, ISO 8601), level, node, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "node": getattr(record, "node", ""),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(node: str, log_format: str, log_level: str) -> None:
    """All of geokv's log lines to standard error, in the given form. Replaces what an earlier call set up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_NodeName(node))
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT))
    logger = logging.getLogger("geokv")
    for older in list(logger.handlers):
        logger.removeHandler(older)
    logger.addHandler(handler)
    logger.setLevel(log_level.upper())
    logger.propagate = False
