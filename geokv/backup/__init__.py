"""Backups of whole clusters: made from running nodes, verified and restored without them.

    form         what a backup says of itself: backup.json (docs/formats/backup.md)
    repository   a folder of backups, which share what did not change
    create       snapshots on all nodes at one cut, fetched over the network
    verify       every byte, without a node
    restore      into empty directories, as a cluster that the former one cannot talk to

Not here: snapshots (`storage.snapshots`), what the states of a cut become together (`node.restoring`).
"""
