"""What geokv does per second, beside what others do on the same machine. Nothing in geokv imports it."""
