"""`vitdeploy report DIR DIR…`: the evidence of several artifacts in one page, and nothing mixed that may not be.

folders     the artifacts that are meant by folders: artifacts, trials, sweeps
runs        an artifact with its figures, its verdict and what is missing
page        the groups, the page and the summary
"""
