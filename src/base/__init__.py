"""What every command needs and nothing here knows of depth: types, files, signals, arguments, errors."""
