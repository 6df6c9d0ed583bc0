"""Durability: the disk, the write-ahead log, checkpoints, the engine. Synchronous, all through one `Disk`."""
