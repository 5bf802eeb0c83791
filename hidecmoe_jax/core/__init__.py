"""The floor everything stands on: errors, strict configuration, pytrees as flat dicts, keys and shardings."""
