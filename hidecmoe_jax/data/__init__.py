"""Data: from a folder of LLaVA JSON and pictures to padded batches.

`jsonfile`, `items` and `records` read and check files, `images` decodes pictures, `stream` opens tasks, `check`
searches a stream for leaks and contradictions, `prompts` and `encoder` tokenise records, `loader` orders and pads them
into batches, `features` caches the outputs of the frozen towers, `pocket` draws the small tasks. All of it is numpy on
the host; only `features` runs on a device.
"""
