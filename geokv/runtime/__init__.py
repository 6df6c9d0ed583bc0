"""The real host: asyncio, gRPC and files around the machines. Thin: no branch in it decides anything about stored values."""
