"""Files on disk: atomic writes, manifests, locks, arrays, signals. Knows no machine learning."""
