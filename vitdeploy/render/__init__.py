"""Evidence for people and for other tools: tables, Markdown, JUnit. Nothing is computed here."""
