"""How fast training is, part by part and beside PyTorch: `python -m launch.benchmark --help`.

It measures and never judges. `steps.py` is what is timed; `parts.py` times parts of it in one
process; `compare.py` times whole steps, ours and PyTorch's, in processes that take turns;
`startup.py` times what comes before the first step, `reading.py` the input; `picture.py` draws.
"""
