"""What is timed or measured outside the tests, and how."""
