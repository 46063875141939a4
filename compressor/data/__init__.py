"""Images: where they come from, how they are split, augmented, prepared and corrupted."""
