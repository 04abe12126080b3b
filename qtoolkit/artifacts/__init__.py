"""Small frozen records that stages hand to each other, and the files they live in."""
