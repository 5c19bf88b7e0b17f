"""`vitdeploy gate`."""
