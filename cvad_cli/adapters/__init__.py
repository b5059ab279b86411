"""One outside library a file, behind the names of the house."""
