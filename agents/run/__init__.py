"""The command that trains: `python train.py`, `engram-train`, `python -m agents.run`.

`command` is the entry, `parsing` reads the words, `training` is one run from its folder to its score, `lessons`
several in a row. Nothing below this package knows of it.
"""
