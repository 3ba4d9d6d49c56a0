"""What works on the report as a whole: the static site."""
