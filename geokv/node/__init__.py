"""One node: the machines and the engine wired together. Still no socket, no clock, no event loop."""
