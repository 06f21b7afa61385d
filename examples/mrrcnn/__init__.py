"""MR R-CNN (arXiv 1911.11263) on torchvision's Mask R-CNN and Shape-aware RoIAlign."""
