"""`vitdeploy bench`."""
