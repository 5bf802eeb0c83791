"""Files on disk: atomic writes, sealed folders of arrays, locks, and stopping on a signal.

`files` writes, moves and deletes; `manifest` seals a folder with checksums; `arrays` stores groups of numpy arrays in a
sealed folder; `lock` allows one writer; `signals` turns SIGTERM into a clean stop; `crash_points` lets tests kill the
process. Nothing here depends on machine learning code.
"""
