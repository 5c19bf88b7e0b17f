"""`vitdeploy report`."""
