"""From labelled images to batches: decoded pixels, the order of an epoch, augmentation. Of no family."""
