"""`--log`: results of run, sweep and gate, written to where people look for results.

entry          one line of a log: parameters, metrics with intervals, doubts, verdict, files
describe       entries of artifacts, trials and sweeps
destination    `mlflow:URI` and `jsonl:FILE`, as users write them
jsonl          a file of JSON Lines
mlflow_server  an MLflow server, folder or database
logs           all destinations of one command
sweep_log      the trials of a sweep, each once
"""
