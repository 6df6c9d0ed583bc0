"""Values: clocks, dots, records, cells, the ring, quorum arithmetic and limits. No clock, no socket, no disk."""
