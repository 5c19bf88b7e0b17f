"""Images and labels: datasets, and the preprocessing that every stage shares."""
