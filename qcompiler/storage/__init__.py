"""Writing to the user's disk: nothing of the user is lost, and nothing appears by halves."""
