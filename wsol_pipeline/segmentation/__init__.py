"""From image labels to a segmentation network: seeds, pseudo masks, training on them, figures."""
