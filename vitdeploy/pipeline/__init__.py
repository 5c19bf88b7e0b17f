"""The architecture as a few straight functions: export, compile, inspect, bench, evaluate, gate, predict, run."""
