"""A generated miniature world in which the whole experiment can be repeated in minutes; start at `miniature`."""
