"""Signatures over an artifact or a family: what they cover, how they are verified. `commands/sign.py` makes them.

    signature.json     the files that never change after export: manifest.json and all that it lists
    attestation.json   the evidence, its raw data and the report, and the verdict

Two, because evidence is measured after export: a new bench needs a new attestation, and no new signature of the model.
"""
