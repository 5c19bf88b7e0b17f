"""`vitdeploy bom`: a bill of materials for a model in the form of CycloneDX 1.6, from what an artifact says of itself.

cyclonedx-python-lib has no model cards, so the document is written here, as JSON. Tests validate it against the
official schema, which that library brings. The same artifact and evidence give the same bytes where the same libraries
are installed.
"""
