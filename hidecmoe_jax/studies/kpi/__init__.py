"""Key figures of a served run, from its decision log: misrouting, cost, latency, storage, and what to do next."""
