"""Work that may crash, hang or fill the memory, in processes of its own.

`child` is the worker's side of one process, `pool` of several; `serve` is the process's own side, with `functions` (a
user's function) and `embedder` (a model) as what it may do; `messages` is what they say to each other.
"""
