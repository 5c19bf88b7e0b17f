"""`vitdeploy eval`."""
