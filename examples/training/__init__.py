"""Training loop and COCO data of the example scripts."""
