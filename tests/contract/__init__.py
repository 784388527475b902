"""Laws that every source and every sink obeys."""
