"""Images: where they come from, and how a network wants them."""
