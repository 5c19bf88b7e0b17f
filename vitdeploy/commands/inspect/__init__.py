"""`vitdeploy inspect`."""
