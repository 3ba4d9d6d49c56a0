"""Measurements that notebooks quote but do not repeat: the search for the recipe, and speed."""
