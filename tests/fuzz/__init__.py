"""A seeded fuzzer: inputs damaged in every way that was thought of, given to the commands that users type.

`python tests/fuzz --write` writes the table of what was tried and how it ended.
"""
