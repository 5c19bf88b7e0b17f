"""The near side of `--host`: find the host, send files, start the job, fetch the results."""
