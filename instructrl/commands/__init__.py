"""The commands behind `instructrl`, one file each: `main(settings) -> exit code`. `reading.py` makes the settings."""
