"""A device over SSH: `--host`.

    here (workstation, CI)                                 there (Jetson, any Linux box; the light base, no torch)
    commands ─▶ client ─▶ ssh ══ the system's ssh ══▶ vitdeploy device … --json ─▶ store, jobs ─▶ worker ─▶ vitdeploy …

What answers there is vitdeploy itself. `commands` says what a command needs; `client` sends files by their sha256,
starts a job, follows it and fetches its results; `ssh` keeps one multiplexed connection and opens it again when it
drops. There, `store` keeps files, `jobs` starts detached `worker`s, which queue for the device's lock and outlive the
link. `messages` is what the two sides say to each other.
"""
