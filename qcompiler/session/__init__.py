"""From what a user hands over to what the user gets back."""
