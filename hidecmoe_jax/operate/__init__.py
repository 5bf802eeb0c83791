"""Operation of a served run: decision log, metrics, drift, alarms. Knows nothing of HTTP."""
