"""From a folder of LLaVA JSON and pictures to padded arrays, on the host and in numpy only.

`records` parses and refuses, `images` inspects and decodes, `prompts` turns a record into token ids and
labels, `stream` makes tasks of folders, `loader` says which records stand in which batch. Nothing here
touches a device.
"""
