"""Views: turn image records into training samples by crops, augmentation and mixing."""
