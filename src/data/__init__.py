"""From the files of a data set to samples: geometry, listing, order, augmentation, the packed form."""
