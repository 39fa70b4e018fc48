"""From any picture or video to its depth, and the files that hold it."""
