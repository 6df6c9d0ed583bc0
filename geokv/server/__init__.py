"""A node as a process: its settings, its boot and its end, and the services that it offers."""
