"""What a user tries first: their own model, their own images, their own limit."""
