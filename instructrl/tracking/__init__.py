"""Who is told while a trainer trains: callbacks, and trackers, which are callbacks that show runs to people."""
