"""Images and labels: datasets, and the one preprocessing that every stage shares."""
