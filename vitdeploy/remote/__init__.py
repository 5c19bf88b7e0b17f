"""Work on a device over SSH: `--host`.

    near/ (workstation, CI)                                device/ (Jetson, any Linux box; the light base, no torch)
    commands ─▶ client ─▶ ssh ══ the system's ssh ══▶ vitdeploy device … --json ─▶ store, jobs ─▶ worker ─▶ vitdeploy …

The device runs vitdeploy too; there is no other server. On the near side, `commands` has one function for each command
with `--host`, `client` sends files by their sha256, starts a job, follows it and fetches its results, and `ssh` keeps
one multiplexed connection and opens it again when it drops. On the device, `store` keeps files and `jobs` starts
detached `worker`s. A worker waits for the device's lock and goes on when the connection ends. `messages` defines the
JSON between the two sides.
"""
