"""The wire forms: protobuf bytes to the values of geokv.protocol and back. Protobuf types do not leave this package.

    kv.py         client batches and their replies, administration, the ring that a client routes by
    peer.py       frames between nodes: which message is which field, and the hot messages of replication and reads
    feeds.py      feeds and definitions        agreement.py   Paxos        closing.py   closing of streams
    checks.py     what every decoder demands of names, columns and indexes

Invariants: a decoder returns a value or raises WireError, whatever the bytes are. What it returns has columns of equal
length, indexes inside them, partitions inside the cluster's, and names that unpack.

Not here: whether a batch makes sense (unknown namespace, a value too large): the machines answer that per operation.
"""
