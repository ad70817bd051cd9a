"""The command that trains: `python train.py`, `engram-train`, `python -m agents.run`.

`command` is the entry point, `parsing` reads the arguments, `training` does one run from its folder to its score,
`lessons` several runs in a row.
"""
