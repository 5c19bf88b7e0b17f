"""The documentation as a site: what `mkdocs.yml` needs besides the Markdown of the repository."""
