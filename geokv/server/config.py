"""Every setting of a node: one table; each value comes from a flag, else the environment, else a file, else its default.

    geokv serve --listen 127.0.0.1:7101        flag
    GEOKV_LISTEN=127.0.0.1:7101                environment
    listen = "127.0.0.1:7101"                  geokv.toml, named by --config or GEOKV_CONFIG

The table is the only list: `geokv serve --help`, docs/operate/settings.md and the tests read it. Settings that all nodes
must agree on (the cluster, its nodes, racks, replicas) are not here but in the topology file.

Invariants: an unknown name in the file, a value of the wrong kind, or two settings that contradict each other is a
ConfigurationError that says where it was said and what to do.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from geokv.core.limits import (
    DRIFT_MS_MAX,
    FRAME_BYTES_MAX,
    LOG_BYTES_MAX,
    MEMTABLE_BYTES,
    MIB,
    SEGMENT_BYTES,
    UNFLUSHED_BYTES_WARN,
)
from geokv.errors import ConfigurationError
from geokv.storage.lsm.strategy import STRATEGIES

ENVIRONMENT_PREFIX: Final = "GEOKV_"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `default` None: must be given, or nothing (see `is_required`)."""

    name: str
    kind: type
    default: Any
    meaning: str
    is_required: bool = False
    choices: tuple[str, ...] = ()
    smallest: float | None = None
    largest: float | None = None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting("topology", Path, None, "The topology file: cluster, datacenters, nodes, addresses.", is_required=True),
    Setting("node", str, None, "This node's name in the topology.", is_required=True),
    Setting("directory", Path, None, "Where this node keeps its log and its tables.", is_required=True),
    Setting("listen", str, "", "Address to listen on, host:port; empty: the node's address in the topology."),
    Setting(
        "allow_plaintext_network",
        bool,
        False,
        "Listen on an address that is not loopback, without encryption: only where the network itself is trusted.",
    ),
    Setting("metrics_listen", str, "", "Address of the Prometheus text over HTTP, host:port; empty: none."),
    Setting("log_format", str, "text", "How log lines look.", choices=("text", "json")),
    Setting("log_level", str, "info", "The least that is logged.", choices=("debug", "info", "warning", "error")),
    Setting(
        "log_segment_bytes",
        int,
        SEGMENT_BYTES,
        "Size of one file of the write-ahead log; two to three are kept ready, filled with zeros.",
        smallest=FRAME_BYTES_MAX * 4,
        largest=1024 * MIB,
    ),
    Setting(
        "log_bytes_max",
        int,
        LOG_BYTES_MAX,
        "How large the write-ahead log may grow while a peer is away; beyond it writes are refused, with the reason.",
        smallest=256 * MIB,
    ),
    Setting(
        "memtable_bytes",
        int,
        MEMTABLE_BYTES,
        "How much is logged between two flushes: what a restart reads again at most.",
        smallest=MIB,
        largest=UNFLUSHED_BYTES_WARN // 2,
    ),
    Setting(
        "block_cache_bytes",
        int,
        64 * MIB,
        "Memory for blocks of tables that were read lately, and as much again for what was read of trees.",
        smallest=0,
    ),
    Setting(
        "row_cache_bytes",
        int,
        16 * MIB,
        "Memory for single cells that had to be read from tables, shared by the namespaces.",
        smallest=0,
    ),
    Setting(
        "filter_bits_per_key",
        int,
        10,
        "Size of the Bloom filters of tables that are written from now on: with 10 of them 1 absent key in 100 costs a block.",
        smallest=1,
        largest=64,
    ),
    Setting(
        "compaction",
        str,
        "levelled",
        "How tables are merged: levelled reads less and takes less space, size-tiered writes less.",
        choices=tuple(STRATEGIES),
    ),
    Setting(
        "storage_bytes_per_s",
        int,
        0,
        "How fast flushes and compactions may write, for a disk that others use too; 0: as fast as they can.",
        smallest=0,
    ),
    Setting(
        "encryption_key_file",
        Path,
        None,
        "File of keys with which what is stored is encrypted, readable by its owner only; see docs/storage.md. Empty: plain.",
    ),
    Setting(
        "encryption_key_command",
        str,
        "",
        "Command that prints such a file, instead of one; run without a shell, at the start and when keys are rotated.",
    ),
    Setting(
        "drift_ms_max",
        int,
        DRIFT_MS_MAX,
        "How far ahead of this node's clock another clock may be and still be followed, in milliseconds.",
        smallest=1,
        largest=3_600_000,
    ),
    Setting(
        "collection_seconds",
        float,
        10.0,
        "How often, at most, what is deleted is collected; the owners of a namespace are asked five times as often.",
        smallest=0.1,
        largest=3_600.0,
    ),
    Setting(
        "drain_seconds",
        float,
        5.0,
        "After SIGTERM: how long calls in progress may take before the node stops all the same.",
        smallest=0.0,
        largest=300.0,
    ),
    Setting("ready_file", Path, None, "Write the line of JSON that says where the node listens to this file, too."),
    Setting(
        "parent_pipe_fd",
        int,
        -1,
        "End when this inherited descriptor, the reading end of a pipe, is closed by the parent; -1: none.",
        smallest=-1,
        largest=65_535,
    ),
    Setting("uvloop", bool, True, "Use uvloop's event loop where it is installed."),
)
BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Config:
    """The values of all settings; fields are named as in the table."""

    topology: Path
    node: str
    directory: Path
    listen: str = ""
    allow_plaintext_network: bool = False
    metrics_listen: str = ""
    log_format: str = "text"
    log_level: str = "info"
    log_segment_bytes: int = SEGMENT_BYTES
    log_bytes_max: int = LOG_BYTES_MAX
    memtable_bytes: int = MEMTABLE_BYTES
    block_cache_bytes: int = 64 * MIB
    row_cache_bytes: int = 16 * MIB
    filter_bits_per_key: int = 10
    compaction: str = "levelled"
    storage_bytes_per_s: int = 0
    encryption_key_file: Path | None = None
    encryption_key_command: str = ""
    drift_ms_max: int = DRIFT_MS_MAX
    collection_seconds: float = 10.0
    drain_seconds: float = 5.0
    ready_file: Path | None = None
    parent_pipe_fd: int = -1
    uvloop: bool = True


def read_config(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None) -> Config:
    """Put the settings together. `flags`: those that were given, by name. Raises ConfigurationError."""
    if strangers := flags.keys() - BY_NAME.keys():
        raise ConfigurationError(f"unknown setting: {', '.join(sorted(strangers))}")
    from_file = _read_file(file or _file_of(environment))
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        source, value = _find(setting, flags, environment, from_file)
        if value is not None:
            values[setting.name] = _convert(setting, value, source)
        elif setting.is_required:
            raise ConfigurationError(
                f"{setting.name} is not set: give {setting.flag}, {setting.variable}, or {setting.name} in the file "
                f"named by --config. {setting.meaning}"
            )
    return Config(**values)


def describe(setting: Setting) -> str:
    """One line for people: meaning, choices, default."""
    parts = [setting.meaning]
    if setting.choices:
        parts.append(f"One of: {', '.join(setting.choices)}.")
    if setting.is_required:
        parts.append("Required.")
    elif setting.default not in (None, ""):
        default = str(setting.default).lower() if setting.kind is bool else setting.default
        parts.append(f"Default: {default}.")
    return " ".join(parts)


def _file_of(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    return Path(named) if named else None


def _read_file(path: Path | None) -> Mapping[str, tuple[str, Any]]:
    """Name to (where it was said, value). The names may stand at the top or in a table [serve]."""
    if path is None:
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as settings: {error}") from error
    found = document.get("serve", document)
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path}: serve must be a table of settings")
    if strangers := found.keys() - BY_NAME.keys():
        raise ConfigurationError(f"{path}: unknown setting {', '.join(sorted(strangers))}; there are: {', '.join(BY_NAME)}")
    return {name: (f"{path}: {name}", value) for name, value in found.items()}


def _find(
    setting: Setting,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    from_file: Mapping[str, tuple[str, Any]],
) -> tuple[str, Any]:
    if flags.get(setting.name) is not None:
        return setting.flag, flags[setting.name]
    if environment.get(setting.variable):
        return setting.variable, environment[setting.variable]
    return from_file.get(setting.name, ("", None))


def _convert(setting: Setting, value: Any, source: str) -> Any:
    """`value` as the setting's kind, inside its bounds."""
    try:
        converted = _to_bool(value) if setting.kind is bool else _to_kind(setting.kind, value)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{source} = {value!r} is not {_KIND_NAMES[setting.kind]}") from error
    if setting.choices and converted not in setting.choices:
        raise ConfigurationError(f"{source} = {value!r}: choose one of {', '.join(setting.choices)}")
    if setting.smallest is not None and converted < setting.smallest:
        raise ConfigurationError(f"{source} = {value!r} is too small: at least {setting.smallest}")
    if setting.largest is not None and converted > setting.largest:
        raise ConfigurationError(f"{source} = {value!r} is too large: at most {setting.largest}")
    return converted


_KIND_NAMES: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


def _to_kind(kind: type, value: Any) -> Any:
    if isinstance(value, bool) or (kind in (str, Path) and not isinstance(value, (str, Path))):
        raise TypeError
    if kind is int and isinstance(value, float):
        raise TypeError
    return kind(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError(text)
