"""Record what a board and its TensorRT do: `vitdeploy doctor --record`.

`record` runs everything · `attempt` and `compilers` are the work of child processes · `models` unpacks the small models
· `facts` reads the system · `scrub` removes what identifies · `recording` is the form on disk · `pack` writes it.
"""
