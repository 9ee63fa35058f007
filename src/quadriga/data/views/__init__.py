"""From one image record to a sample: crops, augmentation, mixing."""
