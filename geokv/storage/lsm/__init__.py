"""The LSM engine: memtables over sorted tables on disk, compacted by a worker process.

engine   the namespaces of a node, and the one place where what is live changes
  cells      one namespace: get and update for the hot path, ordered scans
    memtable, cache, bloom
  table_reader, table_writer, block, sealing, facts      the file (docs/formats/sstable.md)
  manifest, meta                                         which files are live (docs/formats/manifest.md)
  jobs, work, flush, compaction, collection, merging     what the worker does
  strategy                                               what it should do next: pure
  verify                                                 whether all of it is whole
  worker, worker_process, pacing, shared_disk            where it does it
"""
