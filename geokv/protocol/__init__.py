"""Machines: what decides. Each is `handle(event, now_us) -> effects`, pure and deterministic."""
