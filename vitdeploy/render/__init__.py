"""Evidence for people and other tools: tables, Markdown, JUnit, HTML. Nothing is judged here."""
