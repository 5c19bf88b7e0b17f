"""The device's side of `--host`: store files, run jobs one at a time, report the device's state."""
