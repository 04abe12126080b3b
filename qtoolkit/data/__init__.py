"""Images, labels and the people in them."""
