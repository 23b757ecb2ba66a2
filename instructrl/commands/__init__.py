"""The commands behind `instructrl`, one file each: `main(arguments) -> exit code`."""
