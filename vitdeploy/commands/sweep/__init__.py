"""`vitdeploy sweep`: a matrix of models, precisions, targets and other keys over one base recipe."""
