"""Turns the files of a data set into samples: geometry, listing, order, augmentation, packed form."""
