"""Trees: the engines `lmdb` and `rocksdb`, each namespace in a tree of its own, behind the memtable that `lsm` has, too.

    lmdb/0000000000000007/       data.mdb lock.mdb       namespace 7, a B+tree
    rocksdb/0000000000000009/    *.sst CURRENT …         namespace 9, a RocksDB without a log

    write ──> log, synced ──> memtable ──(flush: the frames of the log, merged in)──> tree
    get   ──> memtable ──> memtables that are being flushed ──> row cache ──> tree

The log of the node stays the only one, and where it is flushed is said by one manifest, that of `lsm`. A flush merges the
frames between two positions into the trees, makes that durable, and only then moves the position. What a crash leaves in
between is merged once more, which changes nothing: merging is idempotent. So a tree is never behind the manifest; one that
is has been exchanged or lost, and is refused.

    values      how a cell stands in a tree, under a checksum; what a tree says of itself
    tree        what an engine needs of a tree; where trees are
    lmdb_tree, rocks_tree
    reader      a tree in the place of a table, for `lsm.cells`
    merging     flush and collection
    verify      every value checked, in a process of its own
"""
